{% macro build_table(name, schema=target.schema) -%}
    "{{ schema }}".{{ name }}
{%- endmacro %}
