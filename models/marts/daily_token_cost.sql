{{ config(
    period={'usage_date': 'usage_date'},
    follows_prices=true,
    tenant_readable=true,
    indexes=[
        {
            'columns': [
                'usage_date', 'tenant_id', 'token_type', 'operation', 'token_kind', 'is_billed',
                grain_digest(['provider', 'model', 'service_tier', 'price_list', 'currency']),
            ],
            'unique': true,
        },
        {'columns': ['(' ~ month_of('usage_date') ~ ')', 'tenant_id']},
    ],
) }}

with

rated as (
    {% set hourly = mark_partial_read(ref('int_usage__hourly')) -%}
    {{ rated_hours(hourly) }}
),

-- one row per usage_date, payer, labels, provider, model, kind, tier, price list and
-- currency
final as (
    select
        rated.usage_date,
        {{ cost_columns('rated') }},
        {{ cost_sums('rated', 'rated.usage_date') }}
    from rated
    group by
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
