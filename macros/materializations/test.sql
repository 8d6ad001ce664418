{% materialization test, adapter='postgres' %}
    {#- dbt's own drops the table of the rows that a test found and makes it anew at every run: two
        builds at once would collide, and readers lose their rights and views. This one fills it. -#}
    {% set found = get_limit_subquery_sql(sql, config.get('limit')) %}
    {% set relation = api.Relation.create(
        database=database, schema=schema, identifier=model['alias'], type='table'
    ) %}
    {% set name = relation.include(database=false) %}
    {% set keeps = should_store_failures() %}

    {% do begin_snapshot() %}
    {#- Groups are hashed: of how many there are the planner guesses more, the longer the history is,
        and would sort on disk what fits into memory. Up to PostgreSQL 17 a sort that remains makes a
        plan look so dear that it would be compiled. -#}
    {% call statement('main', fetch_result=True) %}
        set local enable_sort = off;
        {{ get_test_sql(
            found, config.get('fail_calc'), config.get('warn_if'), config.get('error_if'), none
        ) }}
    {% endcall %}
    {% set failures = load_result('main').table.columns[0][0] %}
    {% set proved = none if failures else proved_run(sql) %}
    {% if keeps and failures %}
        {% do run_query(
            "drop table if exists pg_temp.found_rows; create temporary table found_rows as " ~ found
        ) %}
    {% endif %}

    {#- What follows is written by one at a time, each seeing what the one before has written. -#}
    {% do run_query(
        "commit; begin; set transaction isolation level read committed;"
        ~ " set local client_connection_check_interval = '1s'; " ~ lock_proofs()
    ) %}
    {% if proved %}
        {% do save_proof(proved) %}
    {% endif %}
    {% if keeps %}
        {% set is_there = run_query(
            "select to_regclass('" ~ name ~ "')::text"
        ).columns[0][0] %}
        {% if is_there %}
            {% do run_query(identified_rows(name)) %}
        {% endif %}
        {% if not failures %}
            {% do run_query(
                "delete from " ~ name if is_there
                else "create table " ~ name ~ " as " ~ found ~ " with no data"
            ) %}
        {% else %}
            {% set columns = "(select array_agg((attname, atttypid) order by attnum) from pg_attribute"
                ~ " where attrelid = to_regclass('{}') and attnum > 0 and not attisdropped)" %}
            {% if not run_query(
                "select " ~ columns.replace('{}', name | string) ~ " = "
                ~ columns.replace('{}', 'pg_temp.found_rows')
            ).columns[0][0] %}
                {% do run_query(
                    "drop table if exists " ~ name ~ "; create table " ~ name
                    ~ " (like pg_temp.found_rows)"
                ) %}
            {% endif %}
            {% do run_query(
                "delete from " ~ name ~ "; insert into " ~ name
                ~ " select * from pg_temp.found_rows; drop table pg_temp.found_rows"
            ) %}
        {% endif %}
        {% do run_query(identified_rows(name)) %}
        {% do apply_grants(relation, {'select': [role_name('analyst')]}) %}
    {% endif %}
    {% do adapter.commit() %}

    {{ return({'relations': [relation] if keeps else []}) }}
{% endmaterialization %}
