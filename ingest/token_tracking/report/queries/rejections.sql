-- one row per reason: payloads refused in the month, by time of arrival, as they may
-- have no other
select
    rejections.reason as name,
    count(*) as event_count
from token_tracking_raw.usage_event_rejections as rejections
where
    (rejections.recorded_at at time zone %(zone)s)::date >= %(month)s
    and (rejections.recorded_at at time zone %(zone)s)::date < %(month_end)s
    and (%(tenant)s::text is null or rejections.payload ->> 'tenant_id' = %(tenant)s)
group by rejections.reason
order by event_count desc, name
