{{ config(
    period={'usage_month': month_of('usage_date')},
    tenant_readable=true,
    indexes=[
        {
            'columns': [
                'usage_month', 'tenant_id', 'token_type', 'operation', 'token_kind', 'is_billed',
                grain_digest(['provider', 'model', 'service_tier', 'price_list', 'currency']),
            ],
            'unique': true,
        },
    ],
) }}

with

daily as (
    select
        day_rows.*,
        {{ month_of('day_rows.usage_date') }} as usage_month
    from {{ mark_partial_read(ref('daily_token_cost')) }} as day_rows
),

-- one row per usage_month, payer, labels, provider, model, kind, tier, price list and
-- currency
final as (
    select
        daily.usage_month,
        {{ cost_columns('daily') }},
        {{ summed_costs('daily', 'daily.usage_month') }}
    from daily
    group by
        usage_month,
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
