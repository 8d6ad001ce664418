{% test equals_raw_events(model) %}
{%- set changes = changes_to_compare([model]) -%}
{{ changes.mark }}
with

expected as (
    select *, 0 as repeated_rows
    from (
        {{ recounted_events(model, changes) }}
    ) as recounted
),

-- one row per grain of the base
found as (
    select
        usage_hour,
        usage_date,
        tenant_id,
        requester_tenant_id,
        agent_id,
        attribution_rule::text as attribution_rule,
        token_type::text as token_type,
        operation::text as operation,
        model,
        provider,
        service_tier,
        context_over,
        unmapped_token_type,
        unmapped_operation,
        sum(tokens) as tokens,
        {%- for number in usage_numbers()[1:] %}
        sum({{ number }}) as {{ number }},
        {%- endfor %}
        count(*) - 1 as repeated_rows
    from {{ model }}
    where {{ is_recounted('usage_hour', changes) }}
    group by
        usage_hour,
        usage_date,
        tenant_id,
        requester_tenant_id,
        agent_id,
        attribution_rule,
        token_type,
        operation,
        model,
        provider,
        service_tier,
        context_over,
        unmapped_token_type,
        unmapped_operation
)

{{ differing_totals(
    [
        'usage_hour', 'usage_date', 'tenant_id', 'requester_tenant_id', 'agent_id',
        'attribution_rule', 'token_type', 'operation', 'model', 'provider', 'service_tier',
        'context_over', 'unmapped_token_type', 'unmapped_operation',
    ],
    usage_numbers() + ['repeated_rows'],
    unless_aliases_changed=model
) }}
{% endtest %}
