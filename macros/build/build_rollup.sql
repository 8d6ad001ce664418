{% macro build_rollup(relation, input) %}
    {% set ahead = saved_state(input) %}
    {% if ahead is none or not ahead['is_same'] %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' reads '" ~ input.identifier ~ "', which was never built, or was"
            ~ " truncated or written anew since: build it first, or both with `dbt build`."
        ) }}
    {% endif %}
    {% set log = build_table('rollup_changes', ahead['log_schema']) %}
    {% set query = own_types(sql) %}
    {% set fingerprint = "query " ~ local_md5(query) ~ ", basis " ~ ahead['basis'] %}
    {% set prepared = prepare_rollup(relation, query, fingerprint) %}
    {% set saved = prepared['saved'] %}
    {% if saved is not none and saved['run_no'] < ahead['run_no'] %}
        {% set oldest = run_query(
            "select coalesce(min(run_no), " ~ ahead['run_no'] ~ " + 1) from " ~ log
        ).columns[0][0] %}
        {% if oldest > saved['run_no'] + 1 %}
            {% set saved = none %}
        {% endif %}
    {% endif %}

    {% if saved is none %}
        {% do rebuild_rollup(relation, query, prepared['is_new']) %}
    {% elif saved['run_no'] == ahead['run_no'] %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
    {% else %}
        {% do run_query(
            "set local enable_seqscan = off;"
            ~ " create temporary table changed_periods on commit drop as select distinct "
            ~ config.require('period_of_change') ~ " as period from " ~ log ~ " as changes"
            ~ " where run_no > " ~ saved['run_no'] ~ " and run_no <= " ~ ahead['run_no']
        ) %}
        {#- An array reaches the input's index through the group by; a join would not. -#}
        {% set scope = config.require('period')
            ~ " = any(array(select period from changed_periods))" %}
        {% do make_fresh_rows("select * from (\n" ~ query ~ "\n) as whole where " ~ scope) %}
        {% do run_query(delete_stale_rows(relation, scope)) %}
        {% call statement('main') %}
            {{ insert_missing_rows(relation, scope) }}
        {% endcall %}
    {% endif %}

    {% set of_input = "(select ahead.{} from " ~ build_table('build_state', input.schema)
        ~ " as ahead where ahead.model = '" ~ input.identifier ~ "')" %}
    {% set state = {
        'shape': "'" ~ shape_mark() ~ "'",
        'fingerprint': "'" ~ fingerprint ~ "'",
        'basis': "gen_random_uuid()" if saved is none else "'" ~ saved['basis'] ~ "'",
        'run_no': ahead['run_no'],
        'log_schema': "'" ~ ahead['log_schema'] ~ "'",
        'snapshot': of_input.replace('{}', 'snapshot'),
        'as_of': of_input.replace('{}', 'as_of'),
        'billing_timezone': of_input.replace('{}', 'billing_timezone'),
        'aliases': of_input.replace('{}', 'aliases'),
    } %}
    {% do save_state(relation, dict(state, rebuilt_as_of=state["as_of"]) if saved is none else state) %}
{% endmacro %}
