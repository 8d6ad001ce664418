-- one row per usage_date of the month with usage
select
    daily_token_usage.usage_date as day,
    sum(daily_token_usage.tokens)::bigint as tokens,
    sum(daily_token_usage.input_tokens)::bigint as input_tokens,
    sum(daily_token_usage.output_tokens)::bigint as output_tokens,
    sum(daily_token_usage.cache_read_tokens)::bigint as cache_read_tokens,
    sum(daily_token_usage.cache_write_tokens)::bigint as cache_write_tokens,
    sum(daily_token_usage.reasoning_tokens)::bigint as reasoning_tokens,
    sum(daily_token_usage.event_count)::bigint as event_count
from daily_token_usage
where
    daily_token_usage.usage_date >= %(month)s
    and daily_token_usage.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
group by daily_token_usage.usage_date
order by daily_token_usage.usage_date
