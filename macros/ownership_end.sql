{% macro ownership_end(owners, period) -%}
    {#- A subquery within an expression can be a bound of the index on events. -#}
    (
        select min(later.valid_from)
        from {{ owners }} as later
        where
            later.agent_id = {{ period }}.agent_id
            and later.valid_from > {{ period }}.valid_from
    )
{%- endmacro %}
