{% macro build_base(relation) %}
    {% set log = build_table('rollup_changes', relation.schema) %}
    {% set hours = build_table('build_hours', relation.schema) %}
    {#- The first query after the lock. A statement begins before it takes the snapshot, so everything
        that was committed by this time is counted. -#}
    {% set as_of = run_query("select quote_literal(statement_timestamp())").columns[0][0] %}
    {% do refuse_foreign_transactions() %}
    {% set fingerprint = input_fingerprint(log) %}
    {% set prepared = prepare_rollup(relation, sql, fingerprint) %}
    {% set saved = prepared['saved'] %}
    {% if saved is not none and not saved['read_to'] %}
        {% set saved = none %}
    {% endif %}

    {% if saved is none %}
        {% do run_query("set local enable_seqscan = on; delete from " ~ log ~ "; delete from " ~ hours) %}
        {% do rebuild_rollup(relation, sql, prepared['is_new']) %}
        {% set moved_run = "null" %}
        {% set basis = "gen_random_uuid()" %}
        {% set run_no = next_run(relation) %}
    {% else %}
        {% set moved_run = count_what_is_new(relation, log, hours, saved) %}
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
        'origin': origin_of_totals(),
        'read_to': ends_of_raw_tables(saved),
        'moved_run': moved_run,
    } %}
    {% if saved is none %}
        {#- Tests compare everything once, and then what grows. -#}
        {% do run_query(grow_hours(hours, relation, state['run_no'])) %}
    {% endif %}
    {% do save_state(relation, dict(state, rebuilt_as_of=state["as_of"]) if saved is none else state) %}
{% endmacro %}


{% macro count_what_is_new(relation, log, hours, saved) %}
    {#- New events are added to the base; hours in which something else changed are counted again. Returns
        the newest run in which rows counted that had moved, as an expression. The planner takes an hour
        for 0.5 % of all events and would hash whole raw tables: the joins of a partial build are
        lookups. New events it takes for very few and would sort them: groups are hashed. -#}
    {% set events = marked_input(sql) %}
    {% set query %}
        set local enable_hashjoin = off;
        set local enable_mergejoin = off;
        set local enable_material = off;
        set local enable_sort = off;
        create temporary table hours_to_recount (usage_hour timestamptz primary key, has_moved_rows boolean)
        on commit drop;
        insert into hours_to_recount {{ hours_to_recount(saved) }};
        analyze hours_to_recount;
        {{ create_fresh_rows(partial_query(sql, events_to_count(events, saved))) }};
        select
            exists (select 1 from hours_to_recount) as recounts,
            exists (
                select 1 from fresh_rows
                where usage_hour not in (select usage_hour from hours_to_recount)
            ) as adds
    {% endset %}
    {% set found = run_query(query).rows[0] %}
    {% set run_no = saved['run_no'] + 1 %}
    {% if found['recounts'] or found['adds'] %}
        {% do run_query("delete from " ~ log ~ " where run_no <= " ~ (run_no - runs_in_log())) %}
    {% endif %}
    {% if found['recounts'] %}
        {#- An array reaches the base's index; in a scan it would be searched for each row. -#}
        {% do replace_rows(
            relation,
            "(select * from fresh_rows where usage_hour in (select usage_hour from hours_to_recount))",
            "(select *, ctid as place from " ~ relation
            ~ " where usage_hour = any(array(select usage_hour from hours_to_recount)))",
            log,
            run_no
        ) %}
    {% endif %}
    {% if found['adds'] %}
        {% do add_rows(
            relation,
            "select * from fresh_rows where usage_hour not in (select usage_hour from hours_to_recount)",
            log,
            run_no
        ) %}
    {% elif not found['recounts'] %}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
        {{ return(saved['moved_run'] or "null") }}
    {% endif %}
    {% do run_query(grow_hours(hours, "fresh_rows", run_no, log)) %}
    {% set moved_run %}
        case
            when exists (
                select 1
                from hours_to_recount
                inner join {{ log }} as changes
                    on hours_to_recount.usage_hour = changes.usage_hour
                where
                    hours_to_recount.has_moved_rows
                    and changes.run_no = {{ run_no }}
            ) then {{ run_no }}
            else {{ saved['moved_run'] or "null" }}
        end
    {% endset %}
    {{ return(moved_run) }}
{% endmacro %}


{% macro grow_hours(hours, counted, run_no, log=none) -%}
    {#- Tests count an hour again whenever it has grown by half: all their counts of it together cost a
        constant times its events. What a recount of the build has changed is always due. -#}
    insert into {{ hours }} as kept (usage_hour, event_count, due_count, due_run)
    select
        counted.usage_hour,
        sum(counted.event_count),
        sum(counted.event_count),
        {{ run_no }}
    from {{ counted }} as counted
    {%- if log %}
    where counted.usage_hour not in (select usage_hour from hours_to_recount)
    {%- endif %}
    group by counted.usage_hour
    on conflict (usage_hour) do update
    set (event_count, due_count, due_run) = (
        select
            grown.event_count,
            case when grown.is_due then grown.event_count else kept.due_count end,
            case when grown.is_due then excluded.due_run else kept.due_run end
        from (
            select
                kept.event_count + excluded.event_count as event_count,
                kept.event_count + excluded.event_count >= 1.5 * kept.due_count as is_due
        ) as grown
    )
    {%- if log %};
    insert into {{ hours }} (usage_hour, event_count, due_count, due_run)
    select
        recounted.usage_hour,
        recounted.event_count,
        recounted.event_count,
        {{ run_no }}
    from (
        select
            hours_to_recount.usage_hour,
            coalesce(sum(fresh_rows.event_count), 0) as event_count
        from hours_to_recount
        left join fresh_rows
            on hours_to_recount.usage_hour = fresh_rows.usage_hour
        where
            exists (
                select 1 from {{ log }} as changes
                where
                    changes.usage_hour = hours_to_recount.usage_hour
                    and changes.run_no = {{ run_no }}
            )
        group by hours_to_recount.usage_hour
    ) as recounted
    on conflict (usage_hour) do update
    set
        event_count = excluded.event_count,
        due_count = excluded.due_count,
        due_run = excluded.due_run
    {%- endif %}
{%- endmacro %}
