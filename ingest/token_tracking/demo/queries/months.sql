-- one row per usage_month, tenant_id (the payer)
with

-- one row per usage_month, tenant_id: all of the demo's prices are in US dollars
costs as (
    select
        monthly_token_cost.usage_month,
        monthly_token_cost.tenant_id,
        sum(monthly_token_cost.cost) as amount,
        sum(monthly_token_cost.unpriced_tokens) as unpriced_tokens
    from token_tracking.monthly_token_cost
    where monthly_token_cost.is_billed
    group by monthly_token_cost.usage_month, monthly_token_cost.tenant_id
)

select
    monthly_token_usage.usage_month,
    monthly_token_usage.tenant_id,
    sum(monthly_token_usage.input_tokens) as input_tokens,
    sum(monthly_token_usage.cache_read_tokens) as cache_read_tokens,
    sum(monthly_token_usage.output_tokens) as output_tokens,
    sum(monthly_token_usage.tokens) as tokens,
    sum(monthly_token_usage.event_count) as event_count,
    costs.amount,
    costs.unpriced_tokens
from token_tracking.monthly_token_usage
left join costs
    on
        monthly_token_usage.usage_month = costs.usage_month
        and monthly_token_usage.tenant_id = costs.tenant_id
group by
    monthly_token_usage.usage_month,
    monthly_token_usage.tenant_id,
    costs.amount,
    costs.unpriced_tokens
order by monthly_token_usage.usage_month, sum(monthly_token_usage.tokens) desc
