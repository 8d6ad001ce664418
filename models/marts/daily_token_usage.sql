{{ config(
    period='usage_date',
    period_of_change='changes.usage_date',
    tenant_readable=true,
    indexes=[{'columns': ['(' ~ month_of('usage_date') ~ ')']}],
) }}

with

hourly as (
    select * from {{ ref('int_usage__hourly') }}
),

-- one row per usage_date, tenant_id, token_type, operation, model
final as (
    select
        hourly.usage_date,
        hourly.tenant_id,
        hourly.token_type,
        hourly.operation,
        hourly.model,
        {{ usage_sums('hourly', 'hourly.usage_date') }}
    from hourly
    group by
        usage_date,
        tenant_id,
        token_type,
        operation,
        model
)

select * from final
