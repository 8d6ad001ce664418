{% macro raw_tables() %}
    {#- The raw tables that totals are a function of. -#}
    {{ return(['usage_events', 'usage_voids', 'agent_owners']) }}
{% endmacro %}


{% macro refuse_foreign_transactions(tables=raw_tables()) %}
    {#- By the index also where a table was never analyzed. -#}
    {% set query %}
        set local enable_seqscan = off;
        select
            {%- for table in tables %}
            {{ "or " if not loop.first }}exists (
                select 1 from {{ source('token_tracking_raw', table) }}
                where ingest_xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
            )
            {%- endfor %}
    {% endset %}
    {% if run_query(query).columns[0][0] %}
        {{ exceptions.raise_compiler_error(
            "Rows of the raw tables carry transaction numbers that this cluster has not reached, so"
            ~ " they come from a dump of another one. Run `token-tracking schema apply`, which"
            ~ " stamps them with its own transaction, and build again."
        ) }}
    {% endif %}
{% endmacro %}


{% macro is_new(ingest_xid, saved_snapshot) -%}
    {#- A literal, not a subquery: the planner needs its value to choose the BRIN index. -#}
    {{ ingest_xid }} >= {{ saved_snapshot.split(':')[0] | int }}
        and not pg_visible_in_snapshot({{ ingest_xid }}::text::xid8, '{{ saved_snapshot }}')
{%- endmacro %}


{% macro is_beyond_saved_end(rows, table, saved) -%}
    {#- Raw tables are appended to, so all rows that the saved snapshot saw lie before the saved end. A
        row beyond it is to be counted even where its number says that it was seen: the number is then
        of another time (restored or replicated rows, a counter that was set back), or that snapshot
        was older than the table's file. A row that was updated in place, as to erase personal data,
        lies there too, and counts as before. -#}
    {{ rows }}.ctid > '{{ fromjson(saved['read_to'])[table] }}'::tid
{%- endmacro %}


{% macro ends_of_raw_tables(saved, tables=raw_tables()) %}
    {#- As JSON. The search starts at the saved ends: rows that came since lie before them only where
        they filled a hole. -#}
    {% set ends = fromjson(saved['read_to']) if saved is not none else {} %}
    {% set expression %}
        jsonb_build_object(
            {%- for table in tables %}
            {%- set end = "'" ~ ends.get(table, '(0,0)') ~ "'::tid" %}
            '{{ table }}',
            (
                select coalesce(max(ctid), {{ end }})
                from {{ source('token_tracking_raw', table) }}
                where ctid > {{ end }}
            ){{ "," if not loop.last }}
            {%- endfor %}
        )
    {% endset %}
    {{ return(expression) }}
{% endmacro %}


{% macro hours_to_recount(saved) %}
    {#- Adding is for new events alone. Where something that was counted may count otherwise now, the hour
        is counted again: an event that got a void, or another owner, or that lies where no row was. -#}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- set voids = source('token_tracking_raw', 'usage_voids') -%}
    {%- set owners = source('token_tracking_raw', 'agent_owners') -%}
    {%- set snapshot = saved['snapshot'] -%}
    select
        hours.usage_hour,
        bool_or(hours.has_moved_rows) as has_moved_rows
    from (
        select
            date_trunc('hour', events.occurred_at, 'UTC') as usage_hour,
            true as has_moved_rows
        from {{ events }} as events
        where
            {{ is_beyond_saved_end('events', 'usage_events', saved) }}
            and not ({{ is_new('events.ingest_xid', snapshot) }})
        {#- Two accesses of each table: new numbers by their index, and everything beyond the saved end. -#}
        {%- for by_number in [true, false] %}

        union all

        select
            date_trunc('hour', events.occurred_at, 'UTC') as usage_hour,
            {{ "false" if by_number else "not (" ~ is_new('voids.ingest_xid', snapshot) ~ ")" }}
        from {{ voids }} as voids
        inner join {{ events }} as events
            on
                events.tenant_id = voids.tenant_id
                and events.idempotency_key = voids.idempotency_key
        where
            {{ is_new('voids.ingest_xid', snapshot) if by_number
                else is_beyond_saved_end('voids', 'usage_voids', saved) }}
            and not ({{ is_new('events.ingest_xid', snapshot) }})

        union all

        -- An owner's row decides until the next instant of the agent, whichever row that belongs to.
        select
            date_trunc('hour', events.occurred_at, 'UTC') as usage_hour,
            owners.has_moved_rows
        from (
            -- One row per instant, however often it was corrected: each correction covers the same events.
            select
                owners.agent_id,
                owners.valid_from,
                {{ "false" if by_number
                    else "bool_or(not (" ~ is_new('owners.ingest_xid', snapshot) ~ "))" }} as has_moved_rows
            from {{ owners }} as owners
            where
                {{ is_new('owners.ingest_xid', snapshot) if by_number
                    else is_beyond_saved_end('owners', 'agent_owners', saved) }}
            group by
                owners.agent_id,
                owners.valid_from
        ) as owners
        -- A subquery within an expression is a bound of the index on events. As a join it would filter only
        -- after all later events of the agent had been read, for each instant.
        cross join lateral (
            select
                coalesce({{ ownership_end(owners, 'owners') }}, 'infinity') as valid_to
        ) as period
        inner join {{ events }} as events
            on
                events.agent_id = owners.agent_id
                and events.occurred_at >= owners.valid_from
                and events.occurred_at < period.valid_to
        where not ({{ is_new('events.ingest_xid', snapshot) }})
        {%- endfor %}
    ) as hours
    group by hours.usage_hour
{% endmacro %}


{% macro events_to_count(events, saved) -%}
    (
        -- offset 0 keeps the planner from joining before it has read one hour by the index
        select hour_events.*
        from hours_to_recount
        cross join lateral (
            select events.*
            from {{ events }} as events
            where
                events.occurred_at >= hours_to_recount.usage_hour
                and events.occurred_at < hours_to_recount.usage_hour + interval '1 hour'
            offset 0
        ) as hour_events

        union all

        select events.*
        from {{ events }} as events
        where
            {{ is_new('events.ingest_xid', saved['snapshot']) }}
            and date_trunc('hour', events.occurred_at, 'UTC') not in (
                select hours_to_recount.usage_hour from hours_to_recount
            )
    )
{%- endmacro %}
