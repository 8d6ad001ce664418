select
    usage_date,
    tenant_id,
    token_type,
    operation,
    model,
    billed.tokens as costs_say,
    daily.tokens as daily_says,
    coalesce(billed.tokens, 0) - coalesce(daily.tokens, 0) as difference
from (
    select
        cost_rows.usage_date,
        cost_rows.tenant_id,
        cost_rows.token_type,
        cost_rows.operation,
        cost_rows.model,
        sum(cost_rows.tokens) as tokens
    from daily_token_cost as cost_rows
    where cost_rows.is_billed
    group by
        cost_rows.usage_date,
        cost_rows.tenant_id,
        cost_rows.token_type,
        cost_rows.operation,
        cost_rows.model
) as billed
full outer join daily_token_usage as daily
    using (usage_date, tenant_id, token_type, operation, model)
where
    -- usage of no tokens costs nothing, and has no row
    coalesce(billed.tokens, 0) <> coalesce(daily.tokens, 0)
    and (
        select count(distinct build_status.run_number) = 1
        from build_status
        where build_status.model in ('daily_token_cost', 'daily_token_usage')
    )
