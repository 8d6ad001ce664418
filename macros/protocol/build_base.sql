{% macro build_base(relation) %}
    {% set log = build_table('rollup_changes', relation.schema) %}
    {#- The first query after the lock. A statement begins before it takes the snapshot, so everything
        that was committed by this time is counted. -#}
    {% set as_of = run_query("select quote_literal(statement_timestamp())").columns[0][0] %}
    {% do refuse_foreign_transactions() %}
    {% set fingerprint = input_fingerprint() %}
    {% set prepared = prepare_rollup(relation, sql, fingerprint) %}
    {% set saved = prepared['saved'] %}
    {% if saved is not none and not saved['read_to'] %}
        {% set saved = none %}
    {% endif %}

    {% if saved is none %}
        {% do run_query("set local enable_seqscan = on; delete from " ~ log) %}
        {% do rebuild_rollup(relation, sql, prepared['is_new']) %}
        {% set basis = "gen_random_uuid()" %}
        {% set run_no = "1 + coalesce((select max(run_no) from "
            ~ build_table('build_state', relation.schema) ~ "), 0)" %}
    {% else %}
        {% set run_no = saved['run_no'] + 1 %}
        {% if create_affected_hours(saved) %}
            {#- A rollup that is further behind is rebuilt whole. -#}
            {% do run_query("delete from " ~ log ~ " where run_no <= " ~ (run_no - 10000)) %}
            {% do replace_rows(
                relation,
                partial_query(sql),
                scope="usage_hour = any(array(select usage_hour from affected_hours))",
                log=log,
                run_no=run_no
            ) %}
        {% else %}
            {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
        {% endif %}
        {% set basis = "'" ~ saved['basis'] ~ "'" %}
        {#- Hours that come out as they were are no change. -#}
        {% set run_no = "greatest(" ~ saved['run_no'] ~ ", (select max(run_no) from " ~ log ~ "))" %}
    {% endif %}

    {% set state = {
        'shape': "'" ~ shape_digest() ~ "'",
        'fingerprint': "'" ~ fingerprint ~ "'",
        'basis': basis,
        'run_no': run_no,
        'log_schema': "'" ~ relation.schema ~ "'",
        'snapshot': 'pg_current_snapshot()',
        'as_of': as_of,
        'billing_timezone': "'" ~ var('billing_timezone') ~ "'",
        'aliases': aliases_digest(),
        'read_to': ends_of_raw_tables(saved),
    } %}
    {% do save_state(relation, dict(state, rebuilt_as_of=state["as_of"]) if saved is none else state) %}
{% endmacro %}


{% macro create_affected_hours(saved) %}
    {#- Returns whether there are any. The planner takes an hour for 0.5 % of all events and would hash
        whole raw tables: the joins of a partial build are lookups. -#}
    {% set query %}
        set local enable_hashjoin = off;
        set local enable_mergejoin = off;
        set local enable_material = off;
        create temporary table affected_hours (usage_hour timestamptz primary key) on commit drop;
        insert into affected_hours {{ affected_hours(saved) }};
        analyze affected_hours;
        select exists (select 1 from affected_hours)
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}
