{% macro reconciled(period, period_of_change, changes) -%}
    {%- if not changes.log -%}
    true
    {%- else -%}
    {{ period }} = any(array(
            select distinct {{ period_of_change }}
            from {{ changes.log }} as changes
            where changes.run_no >= {{ first_run(changes) }}
        ))
    {%- endif %}
{%- endmacro %}
