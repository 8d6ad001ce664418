-- one row per {dimension} and currency: what the month's tokens cost by the list that
-- their payer pays by
select
    daily_token_cost.{dimension}::text as name,
    daily_token_cost.currency,
    sum(daily_token_cost.tokens)::bigint as tokens,
    sum(daily_token_cost.cost) as amount,
    sum(daily_token_cost.unpriced_tokens)::bigint as unpriced_tokens
from daily_token_cost
where
    daily_token_cost.is_billed
    and daily_token_cost.usage_date >= %(month)s
    and daily_token_cost.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_token_cost.tenant_id = %(tenant)s)
group by daily_token_cost.{dimension}, daily_token_cost.currency
