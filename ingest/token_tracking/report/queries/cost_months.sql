-- one row per usage_month with usage, and currency
select
    monthly_token_cost.usage_month::text as name,
    monthly_token_cost.currency,
    sum(monthly_token_cost.tokens)::bigint as tokens,
    sum(monthly_token_cost.cost) as amount,
    sum(monthly_token_cost.unpriced_tokens)::bigint as unpriced_tokens
from monthly_token_cost
where
    monthly_token_cost.is_billed
    and (%(tenant)s::text is null or monthly_token_cost.tenant_id = %(tenant)s)
group by monthly_token_cost.usage_month, monthly_token_cost.currency
