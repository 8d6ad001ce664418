{% macro rows_of_groups(rows, groups, periods, columns='rows.*') -%}
    {#- One look-up for each group: offset 0 keeps the planner from joining before it has read one by the
        index. A column of `periods` without a table is one of the rows. -#}
    (
        select group_rows.*
        from {{ groups }} as changed
        cross join lateral (
            select {{ columns }}
            from {{ rows }} as rows
            where
                {%- for column, period in periods.items() %}
                {{ period }} = changed.{{ column }}
                and
                {%- endfor %}
                rows.tenant_id = changed.tenant_id
            offset 0
        ) as group_rows
        offset 0
    )
{%- endmacro %}


{% macro own_periods(periods) %}
    {#- Of rows that have these columns themselves. -#}
    {{ return(dict(zip(periods.keys(), periods.keys()))) }}
{% endmacro %}


{% macro changed_groups(log, periods, first_run) -%}
    select distinct
        {%- for column, period in periods.items() %}
        {{ period }} as {{ column }},
        {%- endfor %}
        tenant_id
    from {{ log }}
    where run_no >= {{ first_run }}
{%- endmacro %}
