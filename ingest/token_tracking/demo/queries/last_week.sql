-- one row per usage_date, the seven days before :end_date
select
    daily_token_usage.usage_date,
    sum(daily_token_usage.tokens) filter (where daily_token_usage.token_type = 'llm') as llm_tokens,
    sum(daily_token_usage.tokens)
        filter (where daily_token_usage.token_type = 'embedding') as embedding_tokens,
    sum(daily_token_usage.tokens) as tokens,
    sum(daily_token_usage.event_count) as event_count
from token_tracking.daily_token_usage
where
    daily_token_usage.usage_date >= %(end_date)s::date - 7
    and daily_token_usage.usage_date < %(end_date)s::date
group by daily_token_usage.usage_date
order by daily_token_usage.usage_date
