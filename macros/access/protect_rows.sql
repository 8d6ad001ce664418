{% macro protect_rows(relation) %}
    {% if not execute or not (config.get('tenant_readable')
        or config.get('materialized') == 'incremental') %}
        {{ return('') }}
    {% endif %}
    {% set reader = role_name('tenant_reader') %}
    {% if config.get('tenant_readable') %}
        {% do apply_grants(relation, {'select': [reader]}, should_revoke=false) %}
    {% endif %}
    {% if config.get('materialized') == 'incremental' %}
        {{ return(row_policies(relation, reader, config.get('grants', {}).get('select', []))) }}
    {% endif %}
{% endmacro %}
