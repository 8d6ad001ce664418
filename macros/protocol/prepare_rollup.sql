{% macro prepare_rollup(relation, query, fingerprint) %}
    {#- Leaves the rollup's table in its shape; returns the state to continue from (none for a whole
        rebuild) and whether the table is new. A restored table is kept, for others' views may depend
        on it. -#}
    {% set saved = saved_state(relation) %}
    {% set is_same = saved is not none and saved['is_same'] %}
    {% set fits = saved is not none and saved['shape'] == shape_digest()
        and (is_same or saved['looks_same']) %}
    {% if not fits %}
        {#- Our own views on top come back when their turn comes; anybody else's stops the build. -#}
        {% call statement('create_rollup') %}
            {{ short_lock_timeout() }};
            {% for node in graph.nodes.values()
                if model.unique_id in node.depends_on.nodes and node.config.materialized == 'token_tracking_view' %}
            drop view if exists "{{ node.schema }}"."{{ node.alias }}";
            {% endfor %}
            drop table if exists {{ relation }};
            create table {{ relation }} {{ get_table_columns_and_constraints() }};
            {{ disable_statistics(relation) }}
        {% endcall %}
    {% endif %}
    {% do run_query(set_replica_identity(relation)) %}
    {% if not fits or not is_same or saved['docs'] != docs_digest() %}
        {% do persist_docs(relation, model) %}
    {% endif %}
    {#- A snapshot of the future belongs to a counter that was set back since. -#}
    {% set goes_on = fits and is_same and saved['is_of_past'] and saved['fingerprint'] == fingerprint
        and not should_full_refresh() %}
    {% if not goes_on %}
        {% do get_assert_columns_equivalent(query) %}
    {% endif %}
    {{ return({'saved': saved if goes_on else none, 'is_new': not fits}) }}
{% endmacro %}


{% macro disable_statistics(relation) -%}
    {#- EXPLAIN shows whoever reads a row of a mart what the planner knows of all rows, which includes
        values of every tenant: so it keeps no statistics of numbers and names. No plan needs them. -#}
    {%- set columns = [] -%}
    {%- for column in model.columns.values()
        if config.get('period') and column.data_type in ['bigint', 'text'] -%}
        {%- do columns.append("alter column " ~ column.name ~ " set statistics 0") -%}
    {%- endfor -%}
    {%- if columns -%}
        alter table {{ relation }} {{ columns | join(', ') }};
    {%- endif -%}
{%- endmacro %}


{% macro set_replica_identity(relation) -%}
    {#- A table in a publication must identify each deleted row: where it has no primary key, by the
        whole row. -#}
    do $identity$
    begin
        if exists (
            select
            from pg_class as found
            where
                found.oid = '{{ relation }}'::regclass
                and found.relreplident in ('d', 'n')
                and not exists (
                    select from pg_index where indrelid = found.oid and indisprimary and found.relreplident = 'd'
                )
        ) then
            {{ short_lock_timeout() }};
            alter table {{ relation }} replica identity full;
        end if;
    end
    $identity$
{%- endmacro %}
