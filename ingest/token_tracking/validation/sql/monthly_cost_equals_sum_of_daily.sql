-- both marts' rows with opposite signs: null currencies are equal in groups, not in joins
select
    cost_rows.usage_month,
    cost_rows.tenant_id,
    cost_rows.token_type,
    cost_rows.operation,
    cost_rows.provider,
    cost_rows.model,
    cost_rows.token_kind,
    cost_rows.service_tier,
    cost_rows.price_list,
    cost_rows.is_billed,
    cost_rows.currency,
    sum(cost_rows.tokens) as difference_in_tokens,
    sum(cost_rows.unpriced_tokens) as difference_in_unpriced_tokens,
    trim_scale(sum(cost_rows.cost)) as difference
from (
    select
        monthly.usage_month,
        monthly.tenant_id,
        monthly.token_type,
        monthly.operation,
        monthly.provider,
        monthly.model,
        monthly.token_kind,
        monthly.service_tier,
        monthly.price_list,
        monthly.is_billed,
        monthly.currency,
        monthly.tokens,
        monthly.unpriced_tokens,
        monthly.cost
    from monthly_token_cost as monthly

    union all

    select
        date_trunc('month', daily.usage_date::timestamp)::date as usage_month,
        daily.tenant_id,
        daily.token_type,
        daily.operation,
        daily.provider,
        daily.model,
        daily.token_kind,
        daily.service_tier,
        daily.price_list,
        daily.is_billed,
        daily.currency,
        -daily.tokens as tokens,
        -daily.unpriced_tokens as unpriced_tokens,
        -daily.cost as cost
    from daily_token_cost as daily
) as cost_rows
where (
    select count(distinct concat(build_status.run_number, ' ', build_status.price_snapshot)) = 1
    from build_status
    where build_status.model in ('daily_token_cost', 'monthly_token_cost')
)
group by
    cost_rows.usage_month,
    cost_rows.tenant_id,
    cost_rows.token_type,
    cost_rows.operation,
    cost_rows.provider,
    cost_rows.model,
    cost_rows.token_kind,
    cost_rows.service_tier,
    cost_rows.price_list,
    cost_rows.is_billed,
    cost_rows.currency
having
    sum(cost_rows.tokens) <> 0
    or sum(cost_rows.unpriced_tokens) <> 0
    or sum(cost_rows.cost) <> 0
