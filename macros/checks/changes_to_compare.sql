{% macro changes_to_compare(rollups) %}
    {% set everything = {'log': none, 'since': 'null', 'mark': ''} %}
    {% if not execute or not states_exist(rollups) %}
        {{ return(everything) }}
    {% endif %}
    {% set query %}
        select
            states.*,
            proofs.run_no as proved_run
        from ({{ common_state(rollups) }}) as states
        left join {{ build_table('build_proofs') }} as proofs
            on
                proofs.test = '{{ model.unique_id }}'
                and proofs.basis = states.basis
    {% endset %}
    {% set known = run_query(query).rows[0] %}
    {% set is_doubt = config.get('severity') | lower == 'warn' %}
    {% if not is_doubt and not config.get('where') %}
        {#- For proved_run(), after the test. -#}
        {% do everything.update({'mark': "/*proves " ~ tojson({
            'rollups': zip(
                rollups | map(attribute='schema'), rollups | map(attribute='identifier')
            ) | list,
            'basis': known['basis'],
        }) ~ "*/"}) %}
    {% endif %}
    {#- A whole rebuild leaves no log of changes: it changed everything. -#}
    {% if 'full' in config.get('tags', []) or known['is_rebuilt'] or not known['log_schema'] %}
        {{ return(everything) }}
    {% endif %}
    {% set log = build_table('rollup_changes', known['log_schema']) %}
    {#- A doubt is reported with the run that gave rise to it. -#}
    {% if is_doubt %}
        {{ return({'log': log, 'since': 'null', 'mark': ''}) }}
    {% endif %}
    {% set is_log_incomplete %}
        select coalesce(min(run_no), {{ known['run_no'] }} + 1) > {{ known['proved_run'] }} + 1
        from {{ log }}
    {% endset %}
    {% if known['proved_run'] is none or run_query(is_log_incomplete).columns[0][0] %}
        {{ return(everything) }}
    {% endif %}
    {{ return(dict(everything, log=log, since=known['proved_run'] + 1)) }}
{% endmacro %}


{% macro states_exist(rollups) %}
    {% set tables = [build_table('build_proofs')] %}
    {% for rollup in rollups %}
        {% do tables.append(build_table('build_state', rollup.schema)) %}
    {% endfor %}
    {{ return(run_query(
        "select bool_and(to_regclass(name) is not null) from unnest(" ~ text_array(tables) ~ ") as name"
    ).columns[0][0]) }}
{% endmacro %}


{% macro common_state(rollups) -%}
    {#- Another build may have come since this one began: its whole rebuild counts as one of this run. -#}
    select
        string_agg(concat(state.model, ' ', state.basis), ', ' order by state.model) as basis,
        case when count(distinct state.log_schema) = 1 then min(state.log_schema) end as log_schema,
        min(state.run_no) as run_no,
        min(state.aliases) as aliases,
        count(state.run_no) = {{ rollups | length }}
        and count(distinct (state.log_schema, state.run_no)) = 1 as is_level,
        bool_or(state.rebuilt_as_of >= least(state.as_of, '{{ run_started_at }}')) as is_rebuilt
    from (
        {%- for rollup in rollups %}
        {{ "union all" if not loop.first }}
        select
            found.model,
            found.basis,
            coalesce(found.log_schema, '{{ rollup.schema }}') as log_schema,
            found.run_no,
            found.aliases,
            found.as_of,
            found.rebuilt_as_of
        from {{ build_table('build_state', rollup.schema) }} as found
        where found.model = '{{ rollup.identifier }}'
        {%- endfor %}
    ) as state
{%- endmacro %}


{% macro is_compared(period, period_of_change, changes) -%}
    {%- if not changes.log -%}
    true
    {%- else -%}
    {{ period }} = any(array(
            select distinct {{ period_of_change }}
            from {{ changes.log }} as changes
            where changes.run_no >= {{ first_compared_run(changes) }}
        ))
    {%- endif %}
{%- endmacro %}


{% macro compared_events(events, changes) -%}
    {%- if not changes.log -%}
    {{ events }}
    {%- else -%}
    (
        select hour_events.*
        from (
            select distinct changes.usage_hour
            from {{ changes.log }} as changes
            where changes.run_no >= {{ first_compared_run(changes) }}
        ) as hours
        cross join lateral (
            select events.*
            from {{ events }} as events
            where
                events.occurred_at >= hours.usage_hour
                and events.occurred_at < hours.usage_hour + interval '1 hour'
            offset 0
        ) as hour_events
        offset 0
    )
    {%- endif %}
{%- endmacro %}


{% macro first_compared_run(changes) -%}
    {#- The newest run in any case, and all that no green test has compared. -#}
    least({{ changes.since }}, (select max(newest.run_no) from {{ changes.log }} as newest))
{%- endmacro %}
