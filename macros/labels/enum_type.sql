{% macro enum_type(name) -%}
    "{{ target.schema }}".{{ name }}
{%- endmacro %}
