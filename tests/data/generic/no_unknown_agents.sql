{% test no_unknown_agents(model) %}
{%- set changes = changes_to_compare([model], is_doubt=true) -%}
select
    base.agent_id,
    base.requester_tenant_id,
    sum(base.tokens) as tokens,
    sum(base.event_count) as event_count,
    min(base.usage_hour) as first_used_at,
    max(base.usage_hour) as last_used_at
from {{ compared_groups(model, {'usage_hour': 'usage_hour', 'usage_date': 'usage_date'}, changes) }} as base
where base.attribution_rule = 'unknown_agent'
group by
    base.agent_id,
    base.requester_tenant_id
{% endtest %}
