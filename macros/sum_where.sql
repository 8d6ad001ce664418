{% macro sum_where(amount, condition) -%}
    coalesce(sum({{ amount }}) filter (where {{ condition }}), 0)::bigint
{%- endmacro %}
