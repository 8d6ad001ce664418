{% macro generate_schema_name(custom_schema_name, node) -%}
    {#- dbt asks for each node as it reads the project, so before it makes any schema. -#}
    {%- do check_schema_name(target.schema) -%}
    {{ default__generate_schema_name(custom_schema_name, node) }}
{%- endmacro %}
