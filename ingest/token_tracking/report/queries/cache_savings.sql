-- one row per currency: what the month's tokens that were read from a cache saved
select
    daily_cache_savings.currency,
    sum(daily_cache_savings.tokens)::bigint as tokens,
    sum(daily_cache_savings.saved) as saved
from daily_cache_savings
where
    daily_cache_savings.is_billed
    and daily_cache_savings.currency is not null
    and daily_cache_savings.usage_date >= %(month)s
    and daily_cache_savings.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_cache_savings.tenant_id = %(tenant)s)
group by daily_cache_savings.currency
order by daily_cache_savings.currency
