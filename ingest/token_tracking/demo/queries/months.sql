-- one row per usage_month, tenant_id (the payer)
select
    monthly_token_usage.usage_month,
    monthly_token_usage.tenant_id,
    sum(monthly_token_usage.input_tokens) as input_tokens,
    sum(monthly_token_usage.cache_read_tokens) as cache_read_tokens,
    sum(monthly_token_usage.output_tokens) as output_tokens,
    sum(monthly_token_usage.tokens) as tokens,
    sum(monthly_token_usage.event_count) as event_count
from token_tracking.monthly_token_usage
group by monthly_token_usage.usage_month, monthly_token_usage.tenant_id
order by monthly_token_usage.usage_month, sum(monthly_token_usage.tokens) desc
