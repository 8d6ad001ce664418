with

newest as (
    select max(daily_token_usage.usage_date) as usage_date from daily_token_usage
),

-- one row per tenant and day of use
days as (
    select
        daily.tenant_id,
        daily.usage_date,
        sum(daily.tokens) as tokens
    from daily_token_usage as daily
    cross join newest
    where daily.usage_date > newest.usage_date - 35
    group by daily.tenant_id, daily.usage_date
)

select
    days.usage_date,
    days.tenant_id,
    days.tokens,
    usual.tokens as usual_tokens,
    round(days.tokens / usual.tokens, 1) as times_usual
from days
cross join newest
cross join lateral (
    select percentile_disc(0.5) within group (order by before.tokens) as tokens
    from days as before
    where
        before.tenant_id = days.tenant_id
        and before.usage_date >= days.usage_date - 28
        and before.usage_date < days.usage_date
    having count(*) >= 7
) as usual
where
    days.usage_date > newest.usage_date - 7
    and usual.tokens > 0
    and days.tokens > 10 * usual.tokens
