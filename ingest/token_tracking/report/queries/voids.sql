-- one row per reason: recorded events of the month that do not count
select
    voids.reason as name,
    count(*) as event_count,
    sum(events.tokens)::bigint as tokens
from token_tracking_raw.usage_voids as voids
inner join token_tracking_raw.usage_events as events
    on
        voids.tenant_id = events.tenant_id
        and voids.idempotency_key = events.idempotency_key
where
    (events.occurred_at at time zone %(zone)s)::date >= %(month)s
    and (events.occurred_at at time zone %(zone)s)::date < %(month_end)s
    and (%(tenant)s::text is null or events.tenant_id = %(tenant)s)
    and pg_visible_in_snapshot(voids.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
    and pg_visible_in_snapshot(events.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
group by voids.reason
order by event_count desc, name
