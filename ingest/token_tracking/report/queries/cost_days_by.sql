-- one row per usage_date of the month, {dimension} and currency, where there is a price
select
    daily_token_cost.usage_date as day,
    daily_token_cost.{dimension}::text as name,
    daily_token_cost.currency,
    sum(daily_token_cost.cost) as amount
from daily_token_cost
where
    daily_token_cost.is_billed
    and daily_token_cost.currency is not null
    and daily_token_cost.usage_date >= %(month)s
    and daily_token_cost.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_token_cost.tenant_id = %(tenant)s)
group by daily_token_cost.usage_date, daily_token_cost.{dimension}, daily_token_cost.currency
