-- one row: the month's days, of all tenants, against raw events less voids as the build saw them
with

daily as (
    select
        daily_token_usage.usage_date,
        sum(daily_token_usage.tokens) as tokens,
        sum(daily_token_usage.input_tokens) as input_tokens,
        sum(daily_token_usage.output_tokens) as output_tokens,
        sum(daily_token_usage.event_count) as event_count
    from daily_token_usage
    where
        daily_token_usage.usage_date >= %(month)s
        and daily_token_usage.usage_date < %(month_end)s
    group by daily_token_usage.usage_date
),

raw_events as (
    select
        local.usage_date,
        sum(events.tokens) as tokens,
        coalesce(sum(events.input_tokens), 0) as input_tokens,
        coalesce(sum(events.output_tokens), 0) as output_tokens,
        count(*) as event_count
    from token_tracking_raw.usage_events as events
    cross join
        lateral (select (events.occurred_at at time zone %(zone)s)::date as usage_date) as local
    -- lookups, for the planner would rather read all voids
    left join lateral (
        select true as is_voided
        from token_tracking_raw.usage_voids as voids
        where
            voids.tenant_id = events.tenant_id
            and voids.idempotency_key = events.idempotency_key
            and pg_visible_in_snapshot(voids.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
        limit 1
    ) as void on true
    where
        -- A day more on either side is more than any zone's offset: this is for the index.
        events.occurred_at >= (%(month)s::timestamp - interval '1 day') at time zone 'UTC'
        and events.occurred_at < (%(month_end)s::timestamp + interval '1 day') at time zone 'UTC'
        and local.usage_date >= %(month)s
        and local.usage_date < %(month_end)s
        and pg_visible_in_snapshot(events.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
        and void.is_voided is null
    group by local.usage_date
)

select
    count(*) as days,
    count(*) filter (
        where
            (daily.tokens, daily.input_tokens, daily.output_tokens, daily.event_count)
            is distinct from
            (
                raw_events.tokens, raw_events.input_tokens, raw_events.output_tokens,
                raw_events.event_count
            )
    ) as differing_days,
    coalesce(sum(daily.tokens), 0)::bigint as tokens,
    coalesce(sum(raw_events.tokens), 0)::bigint as raw_tokens,
    coalesce(sum(daily.event_count), 0)::bigint as event_count,
    coalesce(sum(raw_events.event_count), 0)::bigint as raw_event_count
from daily
full outer join raw_events on daily.usage_date = raw_events.usage_date
