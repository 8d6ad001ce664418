-- one row: the days of the month and their tenants, whose tokens are compared with those
-- that have a cost or no price
with

days as (
    select
        daily_token_usage.usage_date,
        daily_token_usage.tenant_id,
        sum(daily_token_usage.tokens) as tokens
    from daily_token_usage
    where
        daily_token_usage.usage_date >= %(month)s
        and daily_token_usage.usage_date < %(month_end)s
        and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
    group by daily_token_usage.usage_date, daily_token_usage.tenant_id
),

costs as (
    select
        daily_token_cost.usage_date,
        daily_token_cost.tenant_id,
        sum(daily_token_cost.tokens) as tokens
    from daily_token_cost
    where
        daily_token_cost.is_billed
        and daily_token_cost.usage_date >= %(month)s
        and daily_token_cost.usage_date < %(month_end)s
        and (%(tenant)s::text is null or daily_token_cost.tenant_id = %(tenant)s)
    group by daily_token_cost.usage_date, daily_token_cost.tenant_id
)

select
    count(distinct usage_date) filter (
        where coalesce(days.tokens, 0) <> coalesce(costs.tokens, 0)
    ) as differing_days,
    coalesce(sum(days.tokens), 0)::bigint as tokens,
    coalesce(sum(costs.tokens), 0)::bigint as cost_tokens
from days
full outer join costs using (usage_date, tenant_id)
