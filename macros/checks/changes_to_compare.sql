{% macro changes_to_compare(rollups, keeps_totals=false, is_doubt=false) %}
    {% if not execute or not states_exist(rollups) %}
        {{ return({'log': none, 'mark': ''}) }}
    {% endif %}
    {% set query %}
        select
            states.*,
            proofs.run_no as proved_run,
            proofs.snapshot::text as proved_snapshot
        from ({{ common_state(rollups) }}) as states
        left join {{ build_table('build_proofs') }} as proofs
            on
                proofs.test = '{{ model.unique_id }}'
                and proofs.basis = states.basis
    {% endset %}
    {% set known = run_query(query).rows[0] %}
    {#- A doubt is reported with the run that gave rise to it. A whole rebuild leaves no log of changes: it
        changed everything. -#}
    {% set is_whole = 'full' in config.get('tags', []) or known['is_rebuilt'] or not known['log_schema'] %}
    {% set log = build_table(log_of_changes(rollups[-1]), known['log_schema']) %}
    {% if not is_whole and not is_doubt %}
        {#- By their numbers, rows that moved are not new. -#}
        {% set is_whole = not known['proved_snapshot']
            or known['proved_run'] != known['run_no'] and not log_reaches(log, known['proved_run'])
            or keeps_totals and (known['moved_run'] or 0) > known['proved_run'] %}
    {% endif %}
    {% set changes = {'log': none} if is_whole else {
        'log': log,
        'hours': build_table('build_hours', known['log_schema']),
        'since': 'null' if is_doubt
            else '(' ~ saved_proof('run_no + 1') ~ ')' if keeps_totals else known['proved_run'] + 1,
        'snapshot': known['proved_snapshot'],
    } %}
    {#- For proved_run(), after the test. -#}
    {% set claim = {
        'rollups': zip(rollups | map(attribute='schema'), rollups | map(attribute='identifier')) | list,
        'basis': known['basis'],
        'changes': changes,
        'keeps_totals': keeps_totals,
    } %}
    {% set proves = not is_doubt and not config.get('where') %}
    {{ return(dict(changes, mark="/*proves " ~ tojson(claim) ~ "*/" if proves else "")) }}
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
        max(state.moved_run) as moved_run,
        -- of the base: it is built first
        (array_agg(state.snapshot order by state.as_of desc))[1] as snapshot,
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
            found.moved_run,
            found.snapshot,
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


{% macro is_recounted(hour, changes) -%}
    {%- if not changes.log -%}
    true
    {%- else -%}
    {{ hour }} = any(array({{ hours_due(changes) }}))
    {%- endif %}
{%- endmacro %}


{% macro recounted_hours(events, changes) -%}
    {%- if not changes.log -%}
    {{ events }}
    {%- else -%}
    (
        select hour_events.*
        from ({{ hours_due(changes) }}) as hours
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


{% macro hours_due(changes) -%}
    {#- Hours that have grown by half since, or that the build has counted again. -#}
    select due.usage_hour from {{ changes.hours }} as due where due.due_run >= {{ first_compared_run(changes) }}
{%- endmacro %}


{% macro compared_groups(rows, periods, changes, is_finer=true) -%}
    {%- if not changes.log -%}
    {{ rows }}
    {%- else -%}
    {{ rows_of_groups(
        rows, groups_changed(periods, changes), periods if is_finer else own_periods(periods)
    ) }}
    {%- endif %}
{%- endmacro %}


{% macro groups_changed(periods, changes) -%}
    ({{ changed_groups(changes.log, periods, first_compared_run(changes)) }})
{%- endmacro %}


{% macro first_compared_run(changes) -%}
    {#- The newest run in any case, and all that no green test has compared. -#}
    least({{ changes.since }}, (select max(newest.run_no) from {{ changes.log }} as newest))
{%- endmacro %}
