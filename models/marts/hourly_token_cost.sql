{{ config(materialized='token_tracking_view') }}

with

rated as (
    {{ rated_usage(ref('int_usage__hourly')) }}
),

-- one row per usage_hour, usage_date, payer, labels, provider, model, kind, tier, price
-- list and currency
final as (
    select
        rated.usage_hour,
        rated.usage_date,
        {{ cost_columns('rated') }},
        {{ cost_sums('rated', 'rated.usage_hour') }}
    from rated
    group by
        usage_hour,
        usage_date,
        tenant_id,
        token_type,
        operation,
        provider,
        model,
        token_kind,
        service_tier,
        price_list,
        is_billed,
        currency
)

select * from final
