{% macro without_statistics(relation) -%}
    {#- EXPLAIN shows whoever reads a row of a mart what the planner knows of all of them, which is
        values of every tenant: of numbers and names it knows nothing. No plan needs that. -#}
    {%- set columns = [] -%}
    {%- for column in model.columns.values()
        if config.get('reads') and column.data_type in ['bigint', 'text'] -%}
        {%- do columns.append("alter column " ~ column.name ~ " set statistics 0") -%}
    {%- endfor -%}
    {%- if columns -%}
        alter table {{ relation }} {{ columns | join(', ') }};
    {%- endif -%}
{%- endmacro %}
