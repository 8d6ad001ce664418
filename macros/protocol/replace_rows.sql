{% macro create_fresh_rows(query) %}
    {#- Into a table, since deleting and writing both compare with the result. The query stands on lines of
        its own, for it may end in a comment. The comparisons that follow are hash joins, since the
        planner's estimate of a period's rows is often far too low. It overestimates the number of
        groups, and would sort on disk what takes a megabyte to hash. -#}
    select set_config('work_mem', '32MB', true)
    where pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('32MB');
    create temporary table fresh_rows on commit drop as
    select {{ model.columns.keys() | join(', ') }} from (
        {{ query }}
    ) as counted;
    set local enable_hashjoin = on;
    set local enable_mergejoin = off;
    set local enable_nestloop = off
{% endmacro %}


{% macro replace_rows(relation, fresh, kept, log=none, run_no=none) %}
    {#- `fresh` and `kept` are FROM items of the rows that are to be there and that are there, with
        their place. A row that changes is updated and not written anew, which spares the indexes. -#}
    {% set columns = model.columns.keys() | join(', ') %}
    {% set delete_rows_without_events %}
        delete from {{ relation }}
        where ctid = any(array(
            select kept.place
            from {{ kept }} as kept
            where not exists (
                select 1 from {{ fresh }} as fresh where {{ is_same_row(grain_columns()) }}
            )
        ))
    {% endset %}
    {% set write_changed_rows %}
        insert into {{ relation }} ({{ columns }})
        select {{ columns }}
        from {{ fresh }} as fresh
        where not exists (
            select 1 from {{ kept }} as kept where {{ is_same_row(model.columns) }}
        )
        on conflict ({{ grain_index_columns() | join(', ') }}) do update
        set
            {% for column in summed_columns() -%}
            {{ column }} = excluded.{{ column }}{{ ", " if not loop.last }}
            {%- endfor %}
    {% endset %}
    {% if log %}
        {% do run_query(logged(delete_rows_without_events, log, run_no)) %}
        {% call statement('main') %}{{ logged(write_changed_rows, log, run_no) }}{% endcall %}
    {% else %}
        {% do run_query(delete_rows_without_events) %}
        {% call statement('main') %}{{ write_changed_rows }}{% endcall %}
    {% endif %}
{% endmacro %}


{% macro add_rows(relation, added, log, run_no) %}
    {#- Sums of disjoint sets of events add up. -#}
    {% set columns = model.columns.keys() | join(', ') %}
    {% set add_to_rows %}
        insert into {{ relation }} as kept ({{ columns }})
        {{ added }}
        on conflict ({{ grain_index_columns() | join(', ') }}) do update
        set
            tokens = {{ checked_total(
                'kept.tokens::numeric + excluded.tokens', 'excluded.tenant_id', 'excluded.usage_hour'
            ) }},
            {%- for number in usage_numbers()[1:] %}
            {{ number }} = kept.{{ number }} + excluded.{{ number }}{{ "," if not loop.last }}
            {%- endfor %}
    {% endset %}
    {% call statement('main') %}{{ logged(add_to_rows, log, run_no) }}{% endcall %}
{% endmacro %}


{% macro logged(statement, log, run_no) -%}
    {#- A payer, or a date, may lose all that it had: so the log has the deleted rows too. -#}
    {%- set columns = build_tables()[log.split('.')[-1]]['key'] -%}
    with changed as (
        {{ statement }}
        returning {{ columns | join(', ') }}
    )
    insert into {{ log }} (run_no, {{ columns | join(', ') }})
    select distinct {{ run_no }}, changed.{{ columns | join(', changed.') }}
    from changed
    on conflict ({{ columns | join(', ') }}) do update
    set run_no = excluded.run_no
{%- endmacro %}


{% macro is_same_row(columns) -%}
    {#- By = where a column cannot be null, for only that can be hashed. -#}
    {%- set equal = [] -%}
    {%- for name in columns -%}
        {%- set not_null = model.columns[name].constraints
            | selectattr('type', 'equalto', 'not_null') | list -%}
        {%- do equal.append(
            "kept." ~ name ~ (" = " if not_null else " is not distinct from ") ~ "fresh." ~ name
        ) -%}
    {%- endfor -%}
    {{ equal | join(' and ') }}
{%- endmacro %}


{% macro summed_columns() %}
    {% set summed = [] %}
    {% for column in model.columns.values() if column.data_type in ['bigint', 'pg_catalog.numeric'] %}
        {% do summed.append(column.name) %}
    {% endfor %}
    {{ return(summed) }}
{% endmacro %}


{% macro grain_columns() %}
    {#- A row has its grain and its sums. -#}
    {{ return(model.columns.keys() | reject('in', summed_columns()) | list) }}
{% endmacro %}


{% macro grain_index_columns() %}
    {#- As the table's primary key, or its unique index where the grain is too long for a key, has them. -#}
    {% for constraint in model.constraints if constraint.type == 'primary_key' %}
        {{ return(constraint.columns) }}
    {% endfor %}
    {% for index in config.require('indexes') if index.unique %}
        {{ return(index.columns) }}
    {% endfor %}
{% endmacro %}


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
        {% do run_query(disable_index_statistics(relation)) %}
    {% else %}
        {% do run_query(create_fresh_rows(query)) %}
        {% do replace_rows(relation, "fresh_rows", "(select *, ctid as place from " ~ relation ~ ")") %}
    {% endif %}
{% endmacro %}
