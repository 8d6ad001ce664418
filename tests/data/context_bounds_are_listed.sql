{{ config(tags=['full', 'every_build']) }}

-- After the costs, which other prices do not wait for.
-- depends_on: {{ ref('monthly_token_cost') }}

with

latest_prices as (
    select distinct on (
        prices.price_list, prices.provider, prices.model, prices.token_kind,
        prices.service_tier, prices.context_over, prices.valid_from
    )
        prices.price_list,
        prices.provider,
        prices.model,
        prices.token_kind,
        prices.service_tier,
        prices.context_over,
        prices.amount,
        prices.valid_from
    from {{ ref('stg_usage__model_prices') }} as prices
    where
        prices.context_over not in (
            0
            {%- for bound in var('context_bounds') %},
            {{ bound }}
            {%- endfor %}
        )
    order by
        prices.price_list asc,
        prices.provider asc,
        prices.model asc,
        prices.token_kind asc,
        prices.service_tier asc,
        prices.context_over asc,
        prices.valid_from asc,
        prices.revision desc
)

select * from latest_prices
where amount is not null
