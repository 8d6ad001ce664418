{{ config(materialized='token_tracking_view') }}
{%- set carried = [
    'requester_tenant_id', 'idempotency_key', 'agent_id', 'conversation_id', 'collection_id',
    'occurred_at',
] %}

with

events as (
    select
        {% for column in carried %}
        counted.{{ column }},
        {% endfor %}
        counted.usage_hour,
        counted.usage_date,
        counted.tenant_id,
        counted.token_type,
        counted.operation,
        counted.provider,
        counted.model,
        counted.service_tier,
        {{ context_over('counted.input_tokens') }} as context_over,
        counted.tokens,
        coalesce(counted.input_tokens, 0) as input_tokens,
        coalesce(counted.output_tokens, 0) as output_tokens,
        coalesce(counted.cache_read_tokens, 0) as cache_read_tokens,
        coalesce(counted.cache_write_tokens, 0) as cache_write_tokens,
        coalesce(counted.cache_write_long_tokens, 0) as cache_write_long_tokens,
        coalesce(counted.reasoning_tokens, 0) as reasoning_tokens
    from {{ ref('usage_events') }} as counted
),

rated as (
    {{ rated_usage('events', carried=carried) }}
),

-- one row per event, kind of its tokens and price list
final as (
    select
        rated.requester_tenant_id,
        rated.idempotency_key,
        rated.agent_id,
        rated.conversation_id,
        rated.collection_id,
        {{ cost_columns('rated') }},
        {{ cost_of_row('rated') }},
        rated.usage_date,
        rated.occurred_at
    from rated
)

select * from final
