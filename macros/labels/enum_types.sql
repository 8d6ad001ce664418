{% macro enum_types() %}
    {{ return({
        'token_type': 'token_types',
        'operation_type': 'operations',
        'attribution_rule': 'attribution_rules',
    }) }}
{% endmacro %}
