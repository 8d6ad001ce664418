select
    usage_date,
    tenant_id,
    token_type,
    operation,
    model,
    sums.of_what as sum_of,
    sums.daily_says,
    sums.hourly_says,
    coalesce(sums.daily_says, 0) - coalesce(sums.hourly_says, 0) as difference
from daily_token_usage as daily
full outer join (
    select
        hourly_rows.usage_date,
        hourly_rows.tenant_id,
        hourly_rows.token_type,
        hourly_rows.operation,
        hourly_rows.model,
        sum(hourly_rows.tokens) as tokens,
        sum(hourly_rows.input_tokens) as input_tokens,
        sum(hourly_rows.output_tokens) as output_tokens,
        sum(hourly_rows.event_count) as event_count,
        sum(hourly_rows.cache_read_tokens) as cache_read_tokens,
        sum(hourly_rows.cache_write_tokens) as cache_write_tokens,
        sum(hourly_rows.cache_write_long_tokens) as cache_write_long_tokens,
        sum(hourly_rows.reasoning_tokens) as reasoning_tokens
    from hourly_token_usage as hourly_rows
    group by
        hourly_rows.usage_date,
        hourly_rows.tenant_id,
        hourly_rows.token_type,
        hourly_rows.operation,
        hourly_rows.model
) as hourly using (usage_date, tenant_id, token_type, operation, model)
cross join lateral (
    values
    ('tokens', daily.tokens, hourly.tokens),
    ('input_tokens', daily.input_tokens, hourly.input_tokens),
    ('output_tokens', daily.output_tokens, hourly.output_tokens),
    ('event_count', daily.event_count, hourly.event_count),
    ('cache_read_tokens', daily.cache_read_tokens, hourly.cache_read_tokens),
    ('cache_write_tokens', daily.cache_write_tokens, hourly.cache_write_tokens),
    ('cache_write_long_tokens', daily.cache_write_long_tokens, hourly.cache_write_long_tokens),
    ('reasoning_tokens', daily.reasoning_tokens, hourly.reasoning_tokens)
) as sums (of_what, daily_says, hourly_says)
where
    sums.daily_says is distinct from sums.hourly_says
    and (
        select count(distinct build_status.run_number) = 1
        from build_status
        where build_status.model in ('daily_token_usage', 'hourly_token_usage')
    )
