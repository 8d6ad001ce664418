{% macro begin_build() %}
    {% do check_root_project() %}
    {% if flags.EMPTY or invocation_args_dict.get('sample') %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' cannot be built with --empty or --sample: it would record rows as"
            ~ " read that it did not read. Build without, or leave it out of the selection."
        ) }}
    {% endif %}
    {#- The snapshot is younger than the lock, so it shows what the build before has committed. -#}
    {% do begin_snapshot(lock_builds()) %}
    {#- Nor may a setting of the session show in what PostgreSQL says of a view. -#}
    {% do run_query("set local search_path = pg_catalog; set local quote_all_identifiers = off") %}
{% endmacro %}


{% macro lock_builds() -%}
    lock table {{ build_table('build_state') }} in share row exclusive mode
{%- endmacro %}


{% macro short_lock_timeout() -%}
    {#- A change of a table or view waits for those who read it in an open transaction, and every new
        reader would wait behind it. -#}
    set local lock_timeout = '5s'
{%- endmacro %}


{% macro begin_snapshot(lock='') %}
    {#- LOCK TABLE takes no snapshot: the transaction's only one is taken after all locks. So everything
        that is read is of one moment, and no command that ignores snapshots (TRUNCATE, an ALTER
        TABLE that writes the table again, CREATE OR REPLACE VIEW) comes between that moment and the
        last read: a snapshot that is older than such a command finds the table empty. A statement that
        can name the process that it waits for takes a snapshot, so the wait comes first, in a
        transaction of its own. The server notices within a second that a client is gone, also while
        it waits, and rolls back. -#}
    {% set inputs = existing_inputs() %}
    {% call statement('begin_snapshot') %}
        set local client_connection_check_interval = '1s';
        {{ wait_for_inputs(inputs) }}
        commit;
        begin;
        set transaction isolation level repeatable read;
        set local client_connection_check_interval = '1s';
        {{ lock ~ ';' if lock }}
        {% if inputs %}
        set local lock_timeout = '60s';
        lock table {{ inputs | join(', ') }} in access share mode;
        set local lock_timeout to default;
        {% endif %}
        -- No setting of a session may show in how PostgreSQL reads SQL.
        set local standard_conforming_strings = on;
        set local datestyle = iso;
        set local jit = off;
    {% endcall %}
{% endmacro %}


{% macro existing_inputs() %}
    {#- The relations that the node reads, as far as they exist: a later step has a better error for a
        missing one. The base also queries the raw tables themselves. A view is locked together with
        the tables that it reads. -#}
    {% if config.get('materialized') == 'token_tracking_view' %}
        {{ return([]) }}
    {% endif %}
    {% set inputs = [] %}
    {% if config.get('materialized') == 'token_tracking_rollup' and not config.get('period') %}
        {% for table in raw_tables() %}
            {% do inputs.append(source('token_tracking_raw', table)) %}
        {% endfor %}
    {% endif %}
    {% for id in model.depends_on.nodes %}
        {% if id in graph.sources %}
            {% do inputs.append(source(graph.sources[id].source_name, graph.sources[id].name)) %}
        {% elif id in graph.nodes %}
            {% do inputs.append(ref(graph.nodes[id].name)) %}
        {% endif %}
    {% endfor %}
    {% set names = [] %}
    {% for input in inputs %}
        {% do names.append(input.include(database=false) | string) %}
    {% endfor %}
    {% set query %}
        select name
        from unnest({{ text_array(names | unique | list) }}) with ordinality as inputs (name, place)
        where to_regclass(name) is not null
        order by place
    {% endset %}
    {{ return(run_query(query).columns[0].values() | list) }}
{% endmacro %}


{% macro wait_for_inputs(inputs) -%}
    {%- if inputs -%}
    do $wait$
    declare
        input text;
        holders text;
    begin
        set local lock_timeout = '60s';
        foreach input in array {{ text_array(inputs) }} loop
            execute format('lock table %s in access share mode', input);
        end loop;
    exception when lock_not_available then
        select
            string_agg(
                format(
                    'process %s (user %s, application %s)',
                    activity.pid, activity.usename, coalesce(nullif(activity.application_name, ''), '?')
                ),
                ', ' order by activity.pid
            )
        into holders
        from pg_stat_activity as activity
        where activity.pid in (
            select locks.pid
            from pg_locks as locks
            where
                locks.relation = input::regclass
                and locks.mode = 'AccessExclusiveLock'
                and locks.database = (select oid from pg_database where datname = current_database())
        );
        raise lock_not_available using message = format(
            '%s is locked for a change by %s: waited 60 s; build again when that is over, or end it',
            input, coalesce(holders, 'a process that is gone by now')
        );
    end
    $wait$;
    {%- endif -%}
{%- endmacro %}
