-- one row: payloads of the month that contradict an event recorded under their key
select
    count(*) as payloads,
    count(distinct row(conflicts.tenant_id, conflicts.idempotency_key)) as keys
from token_tracking_raw.usage_event_conflicts as conflicts
where
    (conflicts.occurred_at at time zone %(zone)s)::date >= %(month)s
    and (conflicts.occurred_at at time zone %(zone)s)::date < %(month_end)s
    and (%(tenant)s::text is null or conflicts.tenant_id = %(tenant)s)
