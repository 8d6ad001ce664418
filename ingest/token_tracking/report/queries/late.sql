-- one row: counted events of the month that arrived late
select
    count(*) filter (where events.recorded_at >= events.occurred_at + interval '1 day')
        as after_a_day,
    count(*) filter (
        where events.recorded_at >= %(month_end)s::timestamp at time zone %(zone)s
    ) as after_the_month,
    coalesce(
        sum(events.tokens) filter (
            where events.recorded_at >= %(month_end)s::timestamp at time zone %(zone)s
        ),
        0
    )::bigint as tokens_after_the_month
from usage_events as events
where
    events.occurred_at >= (%(month)s::timestamp - interval '1 day') at time zone 'UTC'
    and events.occurred_at < (%(month_end)s::timestamp + interval '1 day') at time zone 'UTC'
    and events.usage_date >= %(month)s
    and events.usage_date < %(month_end)s
    and (%(tenant)s::text is null or events.tenant_id = %(tenant)s)
    and pg_visible_in_snapshot(events.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
