{% macro build_rollup(relation, input) %}
    {% set ahead = saved_state(input) %}
    {% if ahead is none or not ahead['is_same'] %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' reads '" ~ input.identifier ~ "', which was never built, or was"
            ~ " truncated or rewritten since: build it first, or both with `dbt build`."
        ) }}
    {% endif %}
    {% set log = build_table('rollup_changes', ahead['log_schema']) %}
    {% set query = cast_to_own_enums(sql) %}
    {% set fingerprint = "query " ~ local_md5(query) ~ ", basis " ~ ahead['basis'] %}
    {% set prepared = prepare_rollup(relation, query, fingerprint) %}
    {% set saved = prepared['saved'] %}
    {% if saved is not none and saved['run_no'] < ahead['run_no'] %}
        {% set oldest_change %}
            select coalesce(min(run_no), {{ ahead['run_no'] }} + 1) from {{ log }}
        {% endset %}
        {% if run_query(oldest_change).columns[0][0] > saved['run_no'] + 1 %}
            {% set saved = none %}
        {% endif %}
    {% endif %}

    {% if saved is none %}
        {% do rebuild_rollup(relation, query, prepared['is_new']) %}
    {% elif saved['run_no'] == ahead['run_no'] %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
    {% else %}
        {% set changed_periods %}
            set local enable_seqscan = off;
            create temporary table changed_periods on commit drop as
            select distinct {{ config.require('period_of_change') }} as period
            from {{ log }} as changes
            where run_no > {{ saved['run_no'] }} and run_no <= {{ ahead['run_no'] }}
        {% endset %}
        {% do run_query(changed_periods) %}
        {#- An array reaches the input's index through the group by; a join would not. -#}
        {% set scope = config.require('period')
            ~ " = any(array(select period from changed_periods))" %}
        {% set query_of_changed_periods %}
            select * from (
                {{ query }}
            ) as whole
            where {{ scope }}
        {% endset %}
        {% do replace_rows(relation, query_of_changed_periods, scope) %}
    {% endif %}

    {% set of_input = "(select ahead.{} from " ~ build_table('build_state', input.schema)
        ~ " as ahead where ahead.model = '" ~ input.identifier ~ "')" %}
    {% set state = {
        'shape': "'" ~ shape_digest() ~ "'",
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


{% macro input_of_rollup() %}
    {#- The one model that a rollup reads, and whose state and rows are of one snapshot. -#}
    {% set inputs = [] %}
    {% for id in model.depends_on.nodes if id in graph.nodes %}
        {% do inputs.append(graph.nodes[id].name) %}
    {% endfor %}
    {% if inputs | length != 1 %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' is a rollup of '" ~ config.get('period') ~ "' and must read one model,"
            ~ " not " ~ inputs | length ~ ": " ~ inputs | join(", ") ~ "."
        ) }}
    {% endif %}
    {{ return(ref(inputs[0])) }}
{% endmacro %}
