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
