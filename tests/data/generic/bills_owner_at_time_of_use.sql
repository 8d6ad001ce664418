{% test bills_owner_at_time_of_use(model) %}
{%- set changes = changes_to_compare([model]) -%}
{{ changes.mark }}
with

expected as (
    {{ recounted_events(model, changes) }}
),

found as (
    select
        usage_hour,
        requester_tenant_id,
        agent_id,
        tenant_id,
        attribution_rule::text as attribution_rule,
        tokens,
        event_count
    from {{ model }}
    where {{ is_recounted('usage_hour', changes) }}
)

{{ differing_totals(
    ['usage_hour', 'requester_tenant_id', 'agent_id', 'tenant_id', 'attribution_rule'],
    ['tokens', 'event_count']
) }}
{% endtest %}
