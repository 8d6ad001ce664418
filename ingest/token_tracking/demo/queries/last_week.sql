-- one row per usage_date, the seven days before :end_date
with

-- one row per usage_date: all of the demo's prices are in US dollars
costs as (
    select
        daily_token_cost.usage_date,
        sum(daily_token_cost.cost) as amount,
        sum(daily_token_cost.unpriced_tokens) as unpriced_tokens
    from token_tracking.daily_token_cost
    where daily_token_cost.is_billed
    group by daily_token_cost.usage_date
)

select
    daily_token_usage.usage_date,
    sum(daily_token_usage.tokens) filter (where daily_token_usage.token_type = 'llm') as llm_tokens,
    sum(daily_token_usage.tokens)
        filter (where daily_token_usage.token_type = 'embedding') as embedding_tokens,
    sum(daily_token_usage.tokens) as tokens,
    sum(daily_token_usage.event_count) as event_count,
    costs.amount,
    costs.unpriced_tokens
from token_tracking.daily_token_usage
left join costs on daily_token_usage.usage_date = costs.usage_date
where
    daily_token_usage.usage_date >= %(end_date)s::date - 7
    and daily_token_usage.usage_date < %(end_date)s::date
group by daily_token_usage.usage_date, costs.amount, costs.unpriced_tokens
order by daily_token_usage.usage_date
