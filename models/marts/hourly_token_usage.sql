{{ config(
    period={'usage_hour': 'usage_hour', 'usage_date': 'usage_date'},
    tenant_readable=true,
    indexes=[{'columns': ['usage_date', 'tenant_id']}],
) }}

with

hourly as (
    select base.* from {{ mark_partial_read(ref('int_usage__hourly')) }} as base
),

-- one row per usage_hour, usage_date, tenant_id, token_type, operation, model
final as (
    select
        hourly.usage_hour,
        hourly.usage_date,
        hourly.tenant_id,
        hourly.token_type,
        hourly.operation,
        hourly.model,
        {{ usage_sums('hourly', 'hourly.usage_hour') }}
    from hourly
    group by
        usage_hour,
        usage_date,
        tenant_id,
        token_type,
        operation,
        model
)

select * from final
