-- one row per usage_month with usage
select
    monthly_token_usage.usage_month as month,
    sum(monthly_token_usage.tokens)::bigint as tokens,
    sum(monthly_token_usage.input_tokens)::bigint as input_tokens,
    sum(monthly_token_usage.output_tokens)::bigint as output_tokens,
    sum(monthly_token_usage.cache_read_tokens)::bigint as cache_read_tokens,
    sum(monthly_token_usage.cache_write_tokens)::bigint as cache_write_tokens,
    sum(monthly_token_usage.reasoning_tokens)::bigint as reasoning_tokens,
    sum(monthly_token_usage.event_count)::bigint as event_count
from monthly_token_usage
where %(tenant)s::text is null or monthly_token_usage.tenant_id = %(tenant)s
group by monthly_token_usage.usage_month
order by monthly_token_usage.usage_month
