{% macro build_rollup(relation, input) %}
    {% set ahead = saved_state(input) %}
    {% if ahead is none or not ahead['is_same'] %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' reads '" ~ input.identifier ~ "', which was never built, or was"
            ~ " truncated or rewritten since: build it first, or both with `dbt build`."
        ) }}
    {% endif %}
    {% set log = build_table(log_of_changes(input), ahead['log_schema']) %}
    {% set own_log = build_table(log_of_changes(relation), relation.schema) if config.get('follows_prices') %}
    {% set query = cast_to_own_enums(sql) %}
    {% set fingerprint = "query " ~ local_md5(query) ~ ", basis " ~ ahead['basis'] %}
    {% if own_log %}
        {% do refuse_foreign_transactions(price_tables()) %}
        {% set fingerprint = fingerprint ~ ", " ~ price_fingerprint() %}
    {% endif %}
    {% set prepared = prepare_rollup(relation, query, fingerprint) %}
    {% set saved = prepared['saved'] %}
    {% if saved is not none %}
        {% set read_run = saved['usage_run'] if own_log else saved['run_no'] %}
        {% if read_run < ahead['run_no'] and not log_reaches(log, read_run) %}
            {% set saved = none %}
        {% endif %}
    {% endif %}

    {% if saved is none %}
        {% do run_query("delete from " ~ own_log) if own_log %}
        {% do rebuild_rollup(relation, query, prepared['is_new']) %}
    {% else %}
        {% do follow_changes(
            relation, input, query, own_log, saved,
            changed_groups(log, config.require('period'), read_run + 1) if read_run != ahead['run_no']
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
        'usage_run': of_input.replace('{}', 'usage_run'),
        'price_snapshot': of_input.replace('{}', 'price_snapshot'),
    } %}
    {% if own_log %}
        {#- Costs change without the base: so they count runs of their own. -#}
        {% do state.update({
            'run_no': next_run(relation) if saved is none
                else "greatest(" ~ saved['run_no'] ~ ", (select max(run_no) from " ~ own_log ~ "))",
            'log_schema': "'" ~ relation.schema ~ "'",
            'usage_run': ahead['run_no'],
            'read_to': ends_of_raw_tables(saved, price_tables()),
            'price_snapshot': 'pg_current_snapshot()',
            'price_lists': text_array(var('price_lists')),
        }) %}
    {% endif %}
    {% do save_state(relation, dict(state, rebuilt_as_of=state["as_of"]) if saved is none else state) %}
{% endmacro %}


{% macro follow_changes(relation, input, query, own_log, saved, changed_usage) %}
    {#- By payer, so that a day with many of them costs what the changed ones do. A run of the base that
        this rollup's input has not read yet may be among them: its groups come again. -#}
    {% set periods = config.require('period') %}
    {% set changed = [changed_usage] if changed_usage else [] %}
    {% if own_log and has_new_prices(saved) %}
        {% do changed.append("(" ~ groups_of_new_prices(input, saved) ~ ")") %}
    {% endif %}
    {% if not changed %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
        {{ return('') }}
    {% endif %}
    {% set run_no = saved['run_no'] + 1 %}
    {% set create_changed_groups %}
        set local enable_seqscan = off;
        create temporary table changed_groups on commit drop as
        {{ changed | join(' union ') }};
        analyze changed_groups
    {% endset %}
    {% do run_query(create_changed_groups) %}
    {% if own_log %}
        {#- Prices are joined with many more rows than the planner expects of groups. -#}
        {% do run_query("set local enable_nestloop = off") %}
    {% endif %}
    {% do run_query(create_fresh_rows(
        partial_query(query, rows_of_groups(marked_input(query), 'changed_groups', periods))
    )) %}
    {% if own_log %}
        {% do run_query("delete from " ~ own_log ~ " where run_no <= " ~ (run_no - runs_in_log())) %}
    {% endif %}
    {% do replace_rows(
        relation,
        "fresh_rows",
        rows_of_groups(relation, 'changed_groups', own_periods(periods), 'rows.*, rows.ctid as place'),
        own_log,
        run_no
    ) %}
{% endmacro %}


{% macro has_new_prices(saved) %}
    {% set query %}
        select
            {%- for table in price_tables() %}
            {{ "or " if not loop.first }}exists (
                select
                from {{ source('token_tracking_raw', table) }} as new_rows
                where {{ is_new_price('new_rows', table, saved) }}
            )
            {%- endfor %}
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}


{% macro log_of_changes(relation) %}
    {#- The table in which builds of the relation, or of what it reads, log whose rows changed. -#}
    {{ return('cost_changes' if relation.identifier == 'daily_token_cost' else 'rollup_changes') }}
{% endmacro %}


{% macro next_run(relation) -%}
    1 + coalesce((select max(run_no) from {{ build_table('build_state', relation.schema) }}), 0)
{%- endmacro %}


{% macro input_of_rollup() %}
    {#- The one rollup that a rollup reads, and whose state and rows are of one snapshot. -#}
    {% set inputs = [] %}
    {% for id in model.depends_on.nodes
        if id in graph.nodes and graph.nodes[id].config.materialized == 'token_tracking_rollup' %}
        {% do inputs.append(graph.nodes[id].name) %}
    {% endfor %}
    {% if inputs | length != 1 %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' is a rollup of '" ~ config.get('period') ~ "' and must read one rollup,"
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
