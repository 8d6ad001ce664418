{% materialization test, adapter='postgres' %}
    {#- dbt's own drops the table of the rows that a test found and makes it anew at every run: two
        builds at once would collide, and readers lose their rights and views. This one fills it. -#}
    {% set found = get_limit_subquery_sql(sql, config.get('limit')) %}
    {% set relation = api.Relation.create(
        database=database, schema=schema, identifier=model['alias'], type='table'
    ) %}
    {% set name = relation.include(database=false) %}
    {% set keeps = should_store_failures() %}

    {#- Groups are hashed: of how many there are the planner guesses more, the longer the history is,
        and would sort on disk what fits into memory. Up to PostgreSQL 17 a sort that remains makes a
        plan look so dear that it would be compiled. -#}
    {% call statement('main', fetch_result=True, auto_begin=keeps) %}
        set local enable_sort = off;
        set local jit = off;
        {{ get_test_sql(
            found, config.get('fail_calc'), config.get('warn_if'), config.get('error_if'), none
        ) }}
    {% endcall %}

    {% if keeps %}
        {% set is_there = run_query(
            warehouse_lock(name) ~ "; select to_regclass('" ~ name ~ "')::text"
        ).columns[0][0] %}
        {% if not load_result('main').table.columns[0][0] %}
            {% do run_query(
                "delete from " ~ name if is_there
                else "create table if not exists " ~ name ~ " as " ~ found ~ " with no data"
            ) %}
        {% else %}
            {% do run_query("create temporary table found_rows on commit drop as " ~ found) %}
            {% set columns = "(select array_agg((attname, atttypid) order by attnum) from pg_attribute"
                ~ " where attrelid = to_regclass('{}') and attnum > 0 and not attisdropped)" %}
            {% if not run_query(
                "select " ~ columns.replace('{}', name | string) ~ " = "
                ~ columns.replace('{}', 'found_rows')
            ).columns[0][0] %}
                {% do run_query(
                    "drop table if exists " ~ name ~ "; create table " ~ name ~ " (like found_rows)"
                ) %}
            {% endif %}
            {% do run_query(
                "delete from " ~ name ~ "; insert into " ~ name ~ " select * from found_rows"
            ) %}
        {% endif %}
        {% do apply_grants(relation, {'select': [role_name('analyst')]}) %}
        {% do adapter.commit() %}
    {% endif %}

    {{ return({'relations': [relation] if keeps else []}) }}
{% endmaterialization %}
