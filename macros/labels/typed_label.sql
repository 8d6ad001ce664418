{% macro typed_label(candidates, type, labels) -%}
    {%- set listed = "('" ~ var(labels) | join("', '") ~ "')" -%}
    case
        {%- for candidate in candidates %}
        when {{ candidate }} in {{ listed }} then {{ candidate }}::{{ enum_type(type) }}
        {%- endfor %}
        else 'unknown'::{{ enum_type(type) }}
    end
{%- endmacro %}
