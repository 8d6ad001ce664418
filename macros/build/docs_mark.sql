{% macro docs_mark() -%}
    {%- set columns = model.columns.values() | map(attribute='description') | list -%}
    docs {{ local_md5(([model.description] + columns) | join('|')) }}
{%- endmacro %}
