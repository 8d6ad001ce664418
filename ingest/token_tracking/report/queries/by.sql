-- one row per {dimension}: the month, and the days of the previous month to compare it
-- with
select
    daily_token_usage.{dimension}::text as name,
    coalesce(sum(daily_token_usage.tokens) filter (where this_month.is_it), 0)::bigint as tokens,
    coalesce(sum(daily_token_usage.event_count) filter (where this_month.is_it), 0)::bigint
        as event_count,
    coalesce(sum(daily_token_usage.tokens) filter (where not this_month.is_it), 0)::bigint
        as tokens_before
from daily_token_usage
cross join lateral (select daily_token_usage.usage_date >= %(month)s as is_it) as this_month
where
    (
        daily_token_usage.usage_date >= %(month)s
        and daily_token_usage.usage_date < %(month_end)s
        or daily_token_usage.usage_date >= %(before)s
        and daily_token_usage.usage_date < %(before_until)s
    )
    and (%(tenant)s::text is null or daily_token_usage.tenant_id = %(tenant)s)
group by daily_token_usage.{dimension}
order by tokens desc, tokens_before desc, name
