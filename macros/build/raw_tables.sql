{% macro raw_tables() %}
    {{ return(['usage_events', 'usage_voids', 'agent_owners']) }}
{% endmacro %}
