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
    {% if saved is not none and saved['run_no'] < ahead['run_no'] and not log_reaches(log, saved['run_no']) %}
        {% set saved = none %}
    {% endif %}

    {% if saved is none %}
        {% do rebuild_rollup(relation, query, prepared['is_new']) %}
    {% elif saved['run_no'] == ahead['run_no'] %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
    {% else %}
        {#- By payer, so that a day with many of them costs what the changed ones do. A run of the base
            that this rollup's input has not read yet may be among them: its groups come again. -#}
        {% set periods = config.require('period') %}
        {% set create_changed_groups %}
            set local enable_seqscan = off;
            create temporary table changed_groups on commit drop as
            {{ changed_groups(log, periods, saved['run_no'] + 1) }};
            analyze changed_groups
        {% endset %}
        {% do run_query(create_changed_groups) %}
        {% do run_query(create_fresh_rows(
            partial_query(query, rows_of_groups(marked_input(query), 'changed_groups', periods))
        )) %}
        {% do replace_rows(
            relation,
            "fresh_rows",
            rows_of_groups(relation, 'changed_groups', own_periods(periods), 'rows.*, rows.ctid as place')
        ) %}
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
        'origin': of_input.replace('{}', 'origin'),
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


{% macro log_reaches(log, run_no) %}
    {#- Each change is logged under the newest run that made it; what is older than the newest runs was
        deleted. -#}
    {% set query %}
        select coalesce({{ run_no }} > max(run_no) - {{ runs_in_log() }}, false) from {{ log }}
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro runs_in_log() %}
    {#- A rollup that is further behind is rebuilt whole. -#}
    {{ return(1000000) }}
{% endmacro %}
