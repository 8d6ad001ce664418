select
    usage_month,
    tenant_id,
    token_type,
    operation,
    model,
    sums.of_what as sum_of,
    sums.monthly_says,
    sums.daily_says,
    coalesce(sums.monthly_says, 0) - coalesce(sums.daily_says, 0) as difference
from monthly_token_usage as monthly
full outer join (
    select
        date_trunc('month', daily_rows.usage_date::timestamp)::date as usage_month,
        daily_rows.tenant_id,
        daily_rows.token_type,
        daily_rows.operation,
        daily_rows.model,
        sum(daily_rows.tokens) as tokens,
        sum(daily_rows.input_tokens) as input_tokens,
        sum(daily_rows.output_tokens) as output_tokens,
        sum(daily_rows.event_count) as event_count,
        sum(daily_rows.cache_read_tokens) as cache_read_tokens,
        sum(daily_rows.cache_write_tokens) as cache_write_tokens,
        sum(daily_rows.cache_write_long_tokens) as cache_write_long_tokens,
        sum(daily_rows.reasoning_tokens) as reasoning_tokens
    from daily_token_usage as daily_rows
    group by
        usage_month,
        daily_rows.tenant_id,
        daily_rows.token_type,
        daily_rows.operation,
        daily_rows.model
) as daily using (usage_month, tenant_id, token_type, operation, model)
cross join lateral (
    values
    ('tokens', monthly.tokens, daily.tokens),
    ('input_tokens', monthly.input_tokens, daily.input_tokens),
    ('output_tokens', monthly.output_tokens, daily.output_tokens),
    ('event_count', monthly.event_count, daily.event_count),
    ('cache_read_tokens', monthly.cache_read_tokens, daily.cache_read_tokens),
    ('cache_write_tokens', monthly.cache_write_tokens, daily.cache_write_tokens),
    ('cache_write_long_tokens', monthly.cache_write_long_tokens, daily.cache_write_long_tokens),
    ('reasoning_tokens', monthly.reasoning_tokens, daily.reasoning_tokens)
) as sums (of_what, monthly_says, daily_says)
where
    sums.monthly_says is distinct from sums.daily_says
    and (
        select count(distinct build_status.run_number) = 1
        from build_status
        where build_status.model in ('monthly_token_usage', 'daily_token_usage')
    )
