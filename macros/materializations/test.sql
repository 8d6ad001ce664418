{% materialization test, adapter='postgres' %}
    {#- In another project's build it is called for all tests: docs/using.md. -#}
    {% if model.package_name != 'token_tracking' %}
        {{ return(dbt.materialization_test_default()) }}
    {% endif %}
    {#- dbt's own drops and creates the table of the rows that a test found at every run: two builds at
        once would collide, and readers lose their privileges and views. This one fills it. -#}
    {% set found = get_limit_subquery_sql(sql, config.get('limit')) %}
    {% set relation = api.Relation.create(
        database=database, schema=schema, identifier=model['alias'], type='table'
    ) %}
    {% set name = relation.include(database=false) %}
    {% set keeps = should_store_failures() %}

    {% do begin_snapshot() %}
    {#- Groups are hashed: the planner's estimate of their number grows with the history, and it would
        sort on disk what fits into memory. Up to PostgreSQL 17 a sort that remains makes a plan look
        expensive enough for JIT compilation. -#}
    {% call statement('main', fetch_result=True) %}
        set local enable_sort = off;
        {{ get_test_sql(
            found, config.get('fail_calc'), config.get('warn_if'), config.get('error_if'), none
        ) }}
    {% endcall %}
    {% set failures = load_result('main').table.columns[0][0] %}
    {% set proved = none if failures else proved_run(sql) %}
    {% if proved and proved['keeps_totals'] %}
        {% do keep_proved_totals(proved) %}
    {% endif %}
    {% if keeps and failures %}
        {% set keep_found_rows %}
            drop table if exists pg_temp.found_rows;
            create temporary table found_rows as {{ found }}
        {% endset %}
        {% do run_query(keep_found_rows) %}
    {% endif %}

    {#- Tests write one after the other, and each sees what the one before has written. -#}
    {% set begin_to_write %}
        commit;
        begin;
        set transaction isolation level read committed;
        set local client_connection_check_interval = '1s';
        {{ lock_proofs() }}
    {% endset %}
    {% do run_query(begin_to_write) %}
    {% if proved %}
        {% do save_proof(proved) %}
    {% endif %}
    {% if keeps %}
        {% set exists = run_query(
            "select to_regclass('" ~ name ~ "')::text"
        ).columns[0][0] %}
        {% if exists %}
            {% do run_query(set_replica_identity(name)) %}
        {% endif %}
        {% if failures %}
            {% set has_same_columns %}
                select
                    count(*) filter (where attrelid = to_regclass('{{ name }}')) > 0
                    and array_agg((attname, atttypid) order by attnum)
                    filter (where attrelid = to_regclass('{{ name }}'))
                    = array_agg((attname, atttypid) order by attnum)
                    filter (where attrelid = 'pg_temp.found_rows'::regclass)
                from pg_attribute
                where
                    attrelid in (to_regclass('{{ name }}'), 'pg_temp.found_rows'::regclass)
                    and attnum > 0
                    and not attisdropped
            {% endset %}
            {% set replace_found_rows %}
                {% if not run_query(has_same_columns).columns[0][0] %}
                drop table if exists {{ name }};
                create table {{ name }} (like pg_temp.found_rows);
                {% endif %}
                delete from {{ name }};
                insert into {{ name }} select * from pg_temp.found_rows;
                drop table pg_temp.found_rows
            {% endset %}
            {% do run_query(replace_found_rows) %}
        {% elif exists %}
            {% do run_query("delete from " ~ name) %}
        {% else %}
            {% do run_query("create table " ~ name ~ " as " ~ found ~ " with no data") %}
        {% endif %}
        {% do run_query(set_replica_identity(name)) %}
        {% do grant_to_existing_roles(relation, {'select': [role_name('analyst')]}) %}
    {% endif %}
    {% do adapter.commit() %}

    {{ return({'relations': [relation] if keeps else []}) }}
{% endmaterialization %}
