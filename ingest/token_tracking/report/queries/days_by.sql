-- one row per usage_date of the month and {dimension}
select
    daily_token_usage.usage_date as day,
    daily_token_usage.{dimension}::text as name,
    sum(daily_token_usage.tokens)::bigint as tokens
from daily_token_usage
where
    daily_token_usage.usage_date >= %(month)s
    and daily_token_usage.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
group by daily_token_usage.usage_date, daily_token_usage.{dimension}
