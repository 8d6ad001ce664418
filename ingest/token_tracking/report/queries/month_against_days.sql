-- one row: the number of tenants, and of those whose month is not the sum of its days
with

months as (
    select
        monthly_token_usage.tenant_id,
        sum(monthly_token_usage.tokens) as tokens,
        sum(monthly_token_usage.input_tokens) as input_tokens,
        sum(monthly_token_usage.output_tokens) as output_tokens,
        sum(monthly_token_usage.cache_read_tokens) as cache_read_tokens,
        sum(monthly_token_usage.cache_write_tokens) as cache_write_tokens,
        sum(monthly_token_usage.cache_write_long_tokens) as cache_write_long_tokens,
        sum(monthly_token_usage.reasoning_tokens) as reasoning_tokens,
        sum(monthly_token_usage.event_count) as event_count
    from monthly_token_usage
    where
        monthly_token_usage.usage_month = %(month)s
        and (%(tenant)s::text is null or monthly_token_usage.tenant_id = %(tenant)s)
    group by monthly_token_usage.tenant_id
),

days as (
    select
        daily_token_usage.tenant_id,
        sum(daily_token_usage.tokens) as tokens,
        sum(daily_token_usage.input_tokens) as input_tokens,
        sum(daily_token_usage.output_tokens) as output_tokens,
        sum(daily_token_usage.cache_read_tokens) as cache_read_tokens,
        sum(daily_token_usage.cache_write_tokens) as cache_write_tokens,
        sum(daily_token_usage.cache_write_long_tokens) as cache_write_long_tokens,
        sum(daily_token_usage.reasoning_tokens) as reasoning_tokens,
        sum(daily_token_usage.event_count) as event_count
    from daily_token_usage
    where
        daily_token_usage.usage_date >= %(month)s
        and daily_token_usage.usage_date < %(month_end)s
        and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
    group by daily_token_usage.tenant_id
)

select
    count(*) as tenants,
    count(*) filter (
        where
            row(
                months.tokens,
                months.input_tokens,
                months.output_tokens,
                months.cache_read_tokens,
                months.cache_write_tokens,
                months.cache_write_long_tokens,
                months.reasoning_tokens,
                months.event_count
            ) is distinct from row(
                days.tokens,
                days.input_tokens,
                days.output_tokens,
                days.cache_read_tokens,
                days.cache_write_tokens,
                days.cache_write_long_tokens,
                days.reasoning_tokens,
                days.event_count
            )
    ) as differing_tenants
from months
full outer join days on months.tenant_id = days.tenant_id
