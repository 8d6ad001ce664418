{% macro text_array(values) -%}
    array[
    {%- for value in values -%}
        {{ string_literal(escape_single_quotes(value)) }}{{ ", " if not loop.last }}
    {%- endfor -%}
    ]::text[]
{%- endmacro %}
