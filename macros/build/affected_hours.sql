{% macro affected_hours(saved) %}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- set voids = source('token_tracking_raw', 'usage_voids') -%}
    {%- set owners = source('token_tracking_raw', 'agent_owners') -%}
    {%- set snapshot = saved['snapshot'] -%}
    {#- Each by an access of its own: by the index on numbers, and from a place in the file on. -#}
    {%- for by_number in [true, false] %}
    {{ "union" if not loop.first }}
    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from {{ events }} as events
    where
        {{ is_new('events.ingest_xid', snapshot) if by_number
            else lies_behind('events', 'usage_events', saved) }}

    union

    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from {{ voids }} as voids
    inner join {{ events }} as events
        on
            events.tenant_id = voids.tenant_id
            and events.idempotency_key = voids.idempotency_key
    where
        {{ is_new('voids.ingest_xid', snapshot) if by_number
            else lies_behind('voids', 'usage_voids', saved) }}

    union

    -- An owner's row decides until the agent's next instant, whichever row that is of.
    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from (
        -- Once for each instant, however often it was corrected: each row of it covers the same events.
        select distinct
            owners.agent_id,
            owners.valid_from
        from {{ owners }} as owners
        where
            {{ is_new('owners.ingest_xid', snapshot) if by_number
                else lies_behind('owners', 'agent_owners', saved) }}
    ) as owners
    -- A subquery within an expression is a bound of the index on events. As a join it would filter only
    -- after all later events of the agent had been read, for each instant.
    cross join lateral (
        select
            coalesce(
                (
                    select min(later.valid_from)
                    from {{ owners }} as later
                    where
                        later.agent_id = owners.agent_id
                        and later.valid_from > owners.valid_from
                ),
                'infinity'
            ) as valid_to
    ) as period
    inner join {{ events }} as events
        on
            events.agent_id = owners.agent_id
            and events.occurred_at >= owners.valid_from
            and events.occurred_at < period.valid_to
    {%- endfor %}
{% endmacro %}
