with

span as (
    select
        min(daily_token_usage.usage_date) as first_date,
        max(daily_token_usage.usage_date) as newest_date
    from daily_token_usage
),

-- one row per day, also without usage: services that stopped reporting leave no row
days as (
    select
        day.usage_date::date as usage_date,
        coalesce(sum(daily.tokens), 0) as tokens
    from span
    cross join lateral generate_series(
        greatest(span.first_date, span.newest_date - 35)::timestamp,
        span.newest_date::timestamp,
        interval '1 day'
    ) as day (usage_date)
    left join daily_token_usage as daily on day.usage_date::date = daily.usage_date
    group by day.usage_date
)

select
    days.usage_date,
    days.tokens,
    four_weeks.lowest as lowest_of_four_weeks,
    four_weeks.highest as highest_of_four_weeks
from days
cross join span
cross join lateral (
    select
        min(before.tokens) as lowest,
        max(before.tokens) as highest
    from days as before
    where
        before.usage_date >= days.usage_date - 28
        and before.usage_date < days.usage_date
    having count(*) >= 14
) as four_weeks
where
    days.usage_date > span.newest_date - 7
    and (
        days.tokens > 3 * four_weeks.highest
        -- the newest day may still be going on
        or (days.usage_date < span.newest_date and days.tokens < four_weeks.lowest / 3)
    )
