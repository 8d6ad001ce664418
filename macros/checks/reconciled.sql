{% macro reconciled(period, period_of_change, changes) -%}
    {%- if changes is none -%}
    true
    {%- else -%}
    {{ period }} = any(array(
            select distinct {{ period_of_change }}
            from {{ changes }} as changes
            where changes.run_no = (select max(newest.run_no) from {{ changes }} as newest)
        ))
    {%- endif %}
{%- endmacro %}
