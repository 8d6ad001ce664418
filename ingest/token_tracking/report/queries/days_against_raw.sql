-- one row: the days of the month and their tenants, compared with the raw events (less
-- voids) that the build saw
with

daily as (
    select
        daily_token_usage.usage_date,
        daily_token_usage.tenant_id,
        sum(daily_token_usage.tokens) as tokens,
        sum(daily_token_usage.input_tokens) as input_tokens,
        sum(daily_token_usage.output_tokens) as output_tokens,
        sum(daily_token_usage.cache_read_tokens) as cache_read_tokens,
        sum(daily_token_usage.cache_write_tokens) as cache_write_tokens,
        sum(daily_token_usage.cache_write_long_tokens) as cache_write_long_tokens,
        sum(daily_token_usage.reasoning_tokens) as reasoning_tokens,
        sum(daily_token_usage.event_count) as event_count
    from daily_token_usage
    where
        daily_token_usage.usage_date >= %(month)s
        and daily_token_usage.usage_date < %(month_end)s
        and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
    group by daily_token_usage.usage_date, daily_token_usage.tenant_id
),

raw_events as (
    select
        counted.usage_date,
        counted.tenant_id,
        sum(counted.tokens) as tokens,
        coalesce(sum(counted.input_tokens), 0) as input_tokens,
        coalesce(sum(counted.output_tokens), 0) as output_tokens,
        coalesce(sum(counted.cache_read_tokens), 0) as cache_read_tokens,
        coalesce(sum(counted.cache_write_tokens), 0) as cache_write_tokens,
        coalesce(sum(counted.cache_write_long_tokens), 0) as cache_write_long_tokens,
        coalesce(sum(counted.reasoning_tokens), 0) as reasoning_tokens,
        count(*) as event_count
    from {recounted_events} as counted
    where
        -- For the index; a day on either side is more than the offset of any time zone.
        counted.occurred_at >= (%(month)s::timestamp - interval '1 day') at time zone 'UTC'
        and counted.occurred_at < (%(month_end)s::timestamp + interval '1 day') at time zone 'UTC'
        and counted.usage_date >= %(month)s
        and counted.usage_date < %(month_end)s
        and (%(tenant)s::text is null or counted.tenant_id = %(tenant)s)
    group by counted.usage_date, counted.tenant_id
),

-- one row per usage_date, tenant_id
compared as (
    select
        usage_date,
        tenant_id,
        daily.tokens,
        daily.event_count,
        raw_events.tokens as raw_tokens,
        raw_events.event_count as raw_event_count,
        (
            row(
                daily.tokens,
                daily.input_tokens,
                daily.output_tokens,
                daily.cache_read_tokens,
                daily.cache_write_tokens,
                daily.cache_write_long_tokens,
                daily.reasoning_tokens,
                daily.event_count
            ) is distinct from row(
                raw_events.tokens,
                raw_events.input_tokens,
                raw_events.output_tokens,
                raw_events.cache_read_tokens,
                raw_events.cache_write_tokens,
                raw_events.cache_write_long_tokens,
                raw_events.reasoning_tokens,
                raw_events.event_count
            )
        ) as differs
    from daily
    full outer join raw_events using (usage_date, tenant_id)
)

select
    count(distinct compared.usage_date) as days,
    count(distinct compared.usage_date) filter (where compared.differs) as differing_days,
    count(distinct compared.tenant_id) filter (where compared.differs) as differing_tenants,
    coalesce(sum(compared.tokens), 0)::bigint as tokens,
    coalesce(sum(compared.raw_tokens), 0)::bigint as raw_tokens,
    coalesce(sum(compared.event_count), 0)::bigint as event_count,
    coalesce(sum(compared.raw_event_count), 0)::bigint as raw_event_count
from compared
