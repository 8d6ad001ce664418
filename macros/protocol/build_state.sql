{% macro saved_state(relation) %}
    {% set name = relation.include(database=false) %}
    {% set query %}
        select
            shape,
            docs,
            fingerprint,
            basis::text as basis,
            run_no,
            snapshot::text as snapshot,
            coalesce(log_schema, '{{ relation.schema }}') as log_schema,
            read_to::text as read_to,
            moved_run,
            coalesce(usage_run, run_no) as usage_run,
            price_snapshot::text as price_snapshot,
            coalesce(pg_snapshot_xmax(coalesce(price_snapshot, snapshot)) <= pg_snapshot_xmax(pg_current_snapshot()), true)
                as is_of_past,
            coalesce(
                relation_oid = to_regclass('{{ name }}')
                and coalesce(
                    relation_file = pg_relation_filenode(relation_oid), relation_file is null
                ),
                false
            ) as is_same,
            coalesce(definition = {{ definition_digest(relation) }}, false) as looks_same
        from {{ build_table('build_state', relation.schema) }}
        where model = '{{ relation.identifier }}'
    {% endset %}
    {% set rows = run_query(query).rows %}
    {{ return(rows[0] if rows else none) }}
{% endmacro %}


{% macro save_state(relation, state) %}
    {#- The values of state are SQL expressions. -#}
    {% set name = relation.include(database=false) %}
    {% set state = dict(
        state,
        relation_oid="'" ~ name ~ "'::regclass",
        relation_file="pg_relation_filenode('" ~ name ~ "'::regclass)",
        docs="'" ~ docs_digest() ~ "'",
        definition=definition_digest(relation),
    ) %}
    {% set columns = state.keys() | list %}
    {% set query %}
        insert into {{ build_table('build_state', relation.schema) }}
        (model, {{ columns | join(', ') }})
        values ('{{ relation.identifier }}', {{ state.values() | join(', ') }})
        on conflict (model) do update
        set ({{ columns | join(', ') }}) = (excluded.{{ columns | join(', excluded.') }})
    {% endset %}
    {% do run_query(query) %}
{% endmacro %}


{% macro docs_digest() -%}
    {%- set columns = model.columns.values() | map(attribute='description') | list -%}
    docs {{ local_md5(([model.description] + columns) | join('|')) }}
{%- endmacro %}


{% macro shape_digest() -%}
    shape {{ local_md5(get_table_columns_and_constraints() ~ config.get('indexes', [])
        ~ disable_statistics(this.include(database=false))) }}
{%- endmacro %}


{% macro definition_digest(relation) -%}
    {#- In PostgreSQL's own words: a view keeps reading a table that was renamed, and a table that was
        restored does not come from our own statement. Names of indexes mean nothing. -#}
    (
        select md5(concat_ws(
            ' ',
            case when found.relkind = 'v' then pg_get_viewdef(found.oid) end,
            found.reloptions::text,
            (
                select string_agg(
                    concat_ws(' ', attname, format_type(atttypid, atttypmod), attcollation, attnotnull),
                    ', ' order by attnum
                )
                from pg_attribute
                where attrelid = found.oid and attnum > 0 and not attisdropped
            ),
            (
                select string_agg(rule, ', ' order by rule collate "C")
                from (
                    select pg_get_constraintdef(oid) as rule
                    from pg_constraint
                    where conrelid = found.oid and contype in ('c', 'p')
                    union all
                    select regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .*? ON ', 'INDEX ON ')
                    from pg_index
                    where indrelid = found.oid
                ) as rules
            )
        ))
        from pg_class as found
        where found.oid = to_regclass('{{ relation.include(database=false) }}')
    )
{%- endmacro %}
