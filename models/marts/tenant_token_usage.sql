{{ config(
    materialized='token_tracking_view',
    view_options='security_invoker = true',
    tenant_readable=true,
) }}

{#- A label that was added later comes last, for a view can only grow at its end. A
    removed one keeps its column, of zeros: as text, for the enum type lacks it. -#}
{% set labels = ['llm', 'embedding', 'fine_tuning', 'unknown'] %}
{% set later = [] %}
{% for label in var('token_types') if label not in labels %}
    {% do later.append(
        "coalesce(sum(daily.tokens) filter (where daily.token_type::text = '" ~ label
        ~ "'), 0)::bigint as " ~ label ~ "_tokens"
    ) %}
{% endfor %}

with

daily as (
    select * from {{ ref('daily_token_usage') }}
),

-- one row per tenant_id
final as (
    select
        daily.tenant_id,
        {% for label in labels -%}
        coalesce(
            sum(daily.tokens) filter (where daily.token_type::text = '{{ label }}'), 0
        )::bigint as {{ label }}_tokens,
        {% endfor -%}
        sum(daily.tokens)::bigint as tokens,
        sum(daily.event_count)::bigint as event_count,
        min(daily.usage_date) as first_used_on,
        {{ (['max(daily.usage_date) as last_used_on'] + later) | join(',\n        ') }}
    from daily
    group by tenant_id
)

select * from final
