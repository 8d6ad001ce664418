{% macro first_run(changes) -%}
    {#- The newest run in any case, and all that no green test has compared. -#}
    least({{ changes.since }}, (select max(newest.run_no) from {{ changes.log }} as newest))
{%- endmacro %}
