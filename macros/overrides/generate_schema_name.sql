{% macro generate_schema_name(custom_schema_name, node) -%}
    {#- dbt asks for each node as it reads the project, so before it creates any schema. -#}
    {%- do check_schema_name(target.schema) -%}
    {%- if custom_schema_name is not none and node.resource_type in ['model', 'seed'] -%}
        {{ exceptions.raise_compiler_error(
            "'" ~ node.name ~ "' has the schema '" ~ custom_schema_name ~ "': the models of"
            ~ " token_tracking share tables and types, so all are in the target's schema. DBT_SCHEMA, or"
            ~ " the profile, names it."
        ) }}
    {%- endif -%}
    {{ default__generate_schema_name(custom_schema_name, node) }}
{%- endmacro %}


{% macro check_schema_name(name) %}
    {#- As ingest/token_tracking/marts/schema_name.py. The name of the schema for the rows that tests found is
        16 bytes longer, and PostgreSQL cuts a name at 63: two long names would share one. -#}
    {% set size = name.encode('utf-8') | length %}
    {% if not name or modules.re.search('["\'\\\\\\x00-\\x1f\\x7f]', name) %}
        {{ exceptions.raise_compiler_error(
            "The target's schema is " ~ name | tojson ~ ": its name must be there, without quotes,"
            ~ " backslashes and control characters. DBT_SCHEMA names it."
        ) }}
    {% elif size > 47 %}
        {{ exceptions.raise_compiler_error(
            "The target's schema is " ~ name | tojson ~ ", whose name has " ~ size ~ " bytes: at most"
            ~ " 47 leave room for the names that are made of it, which PostgreSQL cuts at 63."
            ~ " DBT_SCHEMA names it."
        ) }}
    {% endif %}
{% endmacro %}
