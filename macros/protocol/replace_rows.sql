{% macro replace_rows(relation, query, scope='true', log=none, run_no=none) %}
    {#- The query runs once, since both the deleted and the inserted rows are found by its result. It
        stands on lines of its own, for it may end in a comment. The comparisons that follow are hash
        joins, since the planner's estimate of a period's rows is often far too low. It overestimates
        the number of groups, and would sort on disk what takes a megabyte to hash. -#}
    {% set columns = model.columns.keys() | join(', ') %}
    {% set fresh_rows %}
        select set_config('work_mem', '32MB', true)
        where pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('32MB');
        create temporary table fresh_rows on commit drop as
        select {{ columns }} from (
            {{ query }}
        ) as counted;
        set local enable_hashjoin = on;
        set local enable_mergejoin = off;
        set local enable_nestloop = off
    {% endset %}
    {% do run_query(fresh_rows) %}

    {% set delete_stale_rows %}
        delete from {{ relation }} as kept
        where {{ scope }} and not exists (select 1 from fresh_rows as fresh where {{ is_same_row() }})
    {% endset %}
    {% set insert_missing_rows %}
        insert into {{ relation }} ({{ columns }})
        select {{ columns }} from fresh_rows as fresh
        where
            -- Every remaining row is fresh: equal counts mean that none is missing, without a join.
            (select count(*) from fresh_rows) > (select count(*) from {{ relation }} where {{ scope }})
            and not exists (
                select 1 from {{ relation }} as kept where {{ scope }} and {{ is_same_row() }}
            )
    {% endset %}
    {% if not log %}
        {% do run_query(delete_stale_rows) %}
        {% call statement('main') %}{{ insert_missing_rows }}{% endcall %}
        {{ return('') }}
    {% endif %}
    {#- The dates of both: a payer, or a date, may lose all that it had. -#}
    {% call statement('delete_stale_rows') %}
        with deleted as (
            {{ delete_stale_rows }}
            returning usage_hour, usage_date
        )
        insert into {{ log }}
        select distinct {{ run_no }}, deleted.usage_hour, deleted.usage_date from deleted
    {% endcall %}
    {% call statement('main') %}
        with inserted as (
            {{ insert_missing_rows }}
            returning usage_hour, usage_date
        )
        insert into {{ log }}
        select distinct {{ run_no }}, inserted.usage_hour, inserted.usage_date from inserted
        on conflict do nothing
    {% endcall %}
{% endmacro %}


{% macro is_same_row() -%}
    {#- By = where a column cannot be null, for only that can be hashed. -#}
    {%- set equal = [] -%}
    {%- for column in model.columns.values() -%}
        {%- set not_null = column.constraints | selectattr('type', 'equalto', 'not_null') | list -%}
        {%- do equal.append(
            "kept." ~ column.name ~ (" = " if not_null else " is not distinct from ")
            ~ "fresh." ~ column.name
        ) -%}
    {%- endfor -%}
    {{ equal | join(' and ') }}
{%- endmacro %}


{% macro rebuild_rollup(relation, query, is_new) %}
    {#- A new table gets its indexes after its rows. In an existing one only the rows that differ are
        written: no reader waits, and an unchanged row leaves no dead one behind. -#}
    {% if is_new %}
        {% set columns = model.columns.keys() | join(', ') %}
        {% call statement('main') %}
            insert into {{ relation }} ({{ columns }})
            select {{ columns }}
            from (
                {{ query }}
            ) as counted
        {% endcall %}
        {% do create_indexes(relation) %}
    {% else %}
        {% do replace_rows(relation, query) %}
    {% endif %}
{% endmacro %}
