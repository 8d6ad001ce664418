{{ config(
    materialized='token_tracking_view',
    view_options='security_barrier = true',
    tenant_readable=true,
) }}
{%- set base = ref('int_usage__hourly') -%}
{%- set costs = ref('daily_token_cost').include(database=false) ~ '' -%}
{%- set cached = 'usage.cache_read_tokens' %}

-- With the rights of its owner, for readers have none to the prices: so the view holds
-- the reader's own condition.
with

reader as materialized (
    select {{ sees_all_rows(costs) }} as sees_all
),

hours as (
    select base.*
    from {{ base }} as base
    where
        (select reader.sees_all from reader)
        and base.cache_read_tokens <> 0

    union all

    select base.*
    from {{ base }} as base
    where
        (select not reader.sees_all from reader)
        and base.cache_read_tokens <> 0
        and {{ is_tenant_of_current_user('base.tenant_id') }}
),

rated as (
    {{ rated_usage('hours', {'cache_read': cached, 'input': cached}) }}
),

-- one row per usage_hour, usage_date, payer, labels, provider, model, tier, size of the
-- request and price list, which have one price of each of both kinds
compared as (
    select
        rated.usage_date,
        rated.tenant_id,
        rated.token_type,
        rated.operation,
        rated.provider,
        rated.model,
        rated.service_tier,
        rated.price_list,
        rated.is_billed,
        sum(rated.tokens) filter (where rated.token_kind = 'cache_read') as tokens,
        case
            when count(distinct rated.currency) = 1
                then
                    max(rated.amount) filter (where rated.token_kind = 'input')
                    - max(rated.amount) filter (where rated.token_kind = 'cache_read')
        end as saved_amount,
        max(rated.currency) as currency
    from rated
    where
        (select reader.sees_all from reader)
        or rated.is_billed
    group by
        rated.usage_hour,
        usage_date,
        tenant_id,
        token_type,
        operation,
        provider,
        model,
        service_tier,
        rated.context_over,
        price_list,
        is_billed
),

known as (
    select
        compared.*,
        case
            when compared.saved_amount is not null then compared.currency
        end as known_currency
    from compared
),

-- one row per usage_date, payer, labels, provider, model, tier, price list and currency
final as (
    select
        known.usage_date,
        known.tenant_id,
        known.token_type,
        known.operation,
        known.provider,
        known.model,
        known.service_tier,
        known.price_list,
        known.is_billed,
        known.known_currency as currency,
        sum(known.tokens)::bigint as tokens,
        trim_scale(
            coalesce(sum(known.tokens * known.saved_amount), 0) * 0.000001
        ) as saved
    from known
    group by
        usage_date,
        tenant_id,
        token_type,
        operation,
        provider,
        model,
        service_tier,
        price_list,
        is_billed,
        known_currency
)

select * from final
