{% macro reconciled(period, period_of_change, rollups) -%}
    {%- if compares_everything(rollups) -%}
    true
    {%- else -%}
    {%- set log = log_of_changes(rollups[-1]) -%}
    {{ period }} = any(array(
            select distinct {{ period_of_change }}
            from {{ log }} as changes
            where changes.run_no = (select max(newest.run_no) from {{ log }} as newest)
        ))
    {%- endif %}
{%- endmacro %}
