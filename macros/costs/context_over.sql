{% macro context_over(input_tokens) -%}
    {#- The highest bound that a request is above: prices of long requests count for all of its tokens. -#}
    case
            {%- for bound in var('context_bounds') | sort | reverse if bound %}
            when {{ input_tokens }} > {{ bound }} then {{ bound }}
            {%- endfor %}
            else 0
        end
{%- endmacro %}
