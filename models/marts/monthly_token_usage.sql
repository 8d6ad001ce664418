{{ config(
    period={'usage_month': month_of('usage_date')},
    tenant_readable=true,
) }}

with

daily as (
    select
        day_rows.*,
        {{ month_of('day_rows.usage_date') }} as usage_month
    from {{ mark_partial_read(ref('daily_token_usage')) }} as day_rows
),

-- one row per usage_month, tenant_id, token_type, operation, model
final as (
    select
        daily.usage_month,
        daily.tenant_id,
        daily.token_type,
        daily.operation,
        daily.model,
        {{ usage_sums('daily', 'daily.usage_month') }}
    from daily
    group by
        usage_month,
        tenant_id,
        token_type,
        operation,
        model
)

select * from final
