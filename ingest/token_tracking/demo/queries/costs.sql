-- one row per model: what it cost, and in the week before and from the change of a price
select
    daily_token_cost.model,
    sum(daily_token_cost.tokens) as tokens,
    sum(daily_token_cost.cost) as amount,
    sum(daily_token_cost.unpriced_tokens) as unpriced_tokens,
    coalesce(
        sum(daily_token_cost.cost) filter (
            where
                daily_token_cost.usage_date >= %(change_date)s::date - 7
                and daily_token_cost.usage_date < %(change_date)s::date
        ),
        0
    ) as week_before,
    coalesce(
        sum(daily_token_cost.cost) filter (
            where
                daily_token_cost.usage_date >= %(change_date)s::date
                and daily_token_cost.usage_date < %(change_date)s::date + 7
        ),
        0
    ) as week_after
from token_tracking.daily_token_cost
where daily_token_cost.is_billed
group by daily_token_cost.model
order by amount desc, daily_token_cost.model
