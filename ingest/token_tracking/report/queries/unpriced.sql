-- one row per provider, model, kind and tier: tokens of the month without a price in
-- force at their time
select
    daily_token_cost.provider,
    daily_token_cost.model,
    daily_token_cost.token_kind,
    daily_token_cost.service_tier,
    sum(daily_token_cost.unpriced_tokens)::bigint as tokens
from daily_token_cost
where
    daily_token_cost.is_billed
    and daily_token_cost.currency is null
    and daily_token_cost.usage_date >= %(month)s
    and daily_token_cost.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_token_cost.tenant_id = %(tenant)s)
group by
    daily_token_cost.provider,
    daily_token_cost.model,
    daily_token_cost.token_kind,
    daily_token_cost.service_tier
order by tokens desc, provider, model, token_kind, service_tier
