{% macro prepare_rollup(relation, query, fingerprint) %}
    {#- Leaves the rollup's table in its shape; returns the state to continue from (none for a whole
        rebuild) and whether the table is new. A restored table is kept, for others' views may depend
        on it. -#}
    {% set saved = saved_state(relation) %}
    {% set is_same = saved is not none and saved['is_same'] %}
    {% set fits = saved is not none and saved['shape'] == shape_digest()
        and (is_same or saved['looks_same']) %}
    {% set grows = not fits and saved is not none and is_same and can_grow(relation) %}
    {% if grows %}
        {% do run_query(grow_table(relation)) %}
    {% elif not fits %}
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
    {{ return({'saved': saved if goes_on else none, 'is_new': not fits and not grows}) }}
{% endmacro %}


{% macro can_grow(relation) %}
    {#- Whether the table lacks nothing but sums, so that views of others may stay on it. -#}
    {% set keys = model.constraints | selectattr('type', 'equalto', 'primary_key') | list %}
    {% if not keys %}
        {{ return(false) }}
    {% endif %}
    {% set query %}
        select
            not exists (
                select
                from (
                    values
                    {%- for column in model.columns.values() %}
                    ('{{ column.name }}', to_regtype('{{ column.data_type }}')::oid){{ "," if not loop.last }}
                    {%- endfor %}
                ) as wanted (name, type)
                full outer join (
                    select attname, atttypid
                    from pg_attribute
                    where attrelid = '{{ relation }}'::regclass and attnum > 0 and not attisdropped
                ) as there
                    on wanted.name = there.attname
                where
                    wanted.type is distinct from there.atttypid
                    and (there.attname is not null or wanted.type <> 'bigint'::regtype)
            )
            and exists (
                select
                from pg_constraint
                where
                    conrelid = '{{ relation }}'::regclass
                    and contype = 'p'
                    and array(
                        select attname::text
                        from unnest(conkey) with ordinality as keys (number, place)
                        inner join pg_attribute on attrelid = conrelid and attnum = keys.number
                        order by keys.place
                    ) = {{ text_array(keys[0].columns) }}
            )
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro grow_table(relation) %}
    {{ short_lock_timeout() }};
    do $grow$
    declare
        found name;
    begin
        for found in
            select conname from pg_constraint where conrelid = '{{ relation }}'::regclass and contype = 'c'
        loop
            execute format('alter table {{ relation }} drop constraint %I', found);
        end loop;
    end
    $grow$;
    {% set names = summed_columns() -%}
    alter table {{ relation }}
    {%- for name in names %}
    add column if not exists {{ name }} bigint not null default 0,
    {%- endfor %}
    {%- for check in model.constraints if check.type == 'check' %}
    add constraint {{ check.name }} check ({{ check.expression }}){{ "," if not loop.last }}
    {%- endfor %};
    alter table {{ relation }}
    {%- for name in names %}
    alter column {{ name }} drop default{{ "," if not loop.last }}
    {%- endfor %};
    {{ disable_statistics(relation) }}
{% endmacro %}


{% macro disable_statistics(relation) -%}
    {#- EXPLAIN shows whoever reads a row of a mart what the planner knows of all rows, which includes
        values of every tenant: so it keeps no statistics of numbers and names. No plan needs them. -#}
    {%- set columns = [] -%}
    {%- for column in model.columns.values()
        if config.get('period') and column.data_type in ['bigint', 'pg_catalog.numeric', 'text'] -%}
        {%- do columns.append("alter column " ~ column.name ~ " set statistics 0") -%}
    {%- endfor -%}
    {%- if columns -%}
        alter table {{ relation }} {{ columns | join(', ') }};
    {%- endif -%}
{%- endmacro %}


{% macro disable_index_statistics(relation) -%}
    {#- Of what an index computes there are statistics, too, and they would confirm a guess. -#}
    do $statistics$
    declare
        found record;
    begin
        for found in
            select pg_class.oid::regclass as name, pg_attribute.attnum as place
            from pg_index
            inner join pg_class on pg_index.indexrelid = pg_class.oid
            inner join pg_attribute
                on
                    pg_class.oid = pg_attribute.attrelid
                    and pg_index.indkey[pg_attribute.attnum - 1] = 0
            where
                pg_index.indrelid = '{{ relation }}'::regclass
                and pg_attribute.atttypid = 'bytea'::regtype
        loop
            execute format('alter index %s alter column %s set statistics 0', found.name, found.place);
        end loop;
    end
    $statistics$
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
