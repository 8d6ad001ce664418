{% macro postgres__create_schema(relation) -%}
    {#- "if not exists" looks before it writes: two builds at once on an empty database would meet. -#}
    {%- call statement('create_schema') -%}
        {{ warehouse_lock(relation.schema) }};
        create schema if not exists {{ relation.without_identifier().include(database=false) }}
    {%- endcall -%}
{%- endmacro %}
