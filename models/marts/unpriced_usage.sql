{{ config(materialized='token_tracking_view') }}

with

daily as (
    select * from {{ ref('daily_token_cost') }}
    where currency is null
),

-- one row per price list, provider, model, kind and tier
final as (
    select
        daily.price_list,
        daily.provider,
        daily.model,
        daily.token_kind,
        daily.service_tier,
        sum(daily.unpriced_tokens)::bigint as unpriced_tokens,
        count(distinct daily.tenant_id) as tenant_count,
        min(daily.usage_date) as first_used_on,
        max(daily.usage_date) as last_used_on
    from daily
    group by
        price_list,
        provider,
        model,
        token_kind,
        service_tier
)

select * from final
