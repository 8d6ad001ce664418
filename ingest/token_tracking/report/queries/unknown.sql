-- one row: what the month counts under an unknown type or operation
select
    coalesce(sum(daily_token_usage.tokens), 0)::bigint as tokens,
    coalesce(sum(daily_token_usage.event_count), 0)::bigint as event_count
from daily_token_usage
where
    daily_token_usage.usage_date >= %(month)s
    and daily_token_usage.usage_date < %(month_end)s
    and (daily_token_usage.token_type = 'unknown' or daily_token_usage.operation = 'unknown')
    and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
