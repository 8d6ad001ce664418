{% macro affected_hours(saved_snapshot) %}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- set voids = source('token_tracking_raw', 'usage_voids') -%}
    {%- set owners = source('token_tracking_raw', 'agent_owners') -%}
    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from {{ events }} as events
    where {{ is_new('events.ingest_xid', saved_snapshot) }}

    union

    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from {{ voids }} as voids
    inner join {{ events }} as events
        on
            events.tenant_id = voids.tenant_id
            and events.idempotency_key = voids.idempotency_key
    where {{ is_new('voids.ingest_xid', saved_snapshot) }}

    union

    -- An owner's row decides until the agent's next instant, whichever row that is of.
    select date_trunc('hour', events.occurred_at, 'UTC') as usage_hour
    from {{ owners }} as owners
    cross join lateral (
        select coalesce(min(later.valid_from), 'infinity') as valid_to
        from {{ owners }} as later
        where
            later.agent_id = owners.agent_id
            and later.valid_from > owners.valid_from
    ) as period
    inner join {{ events }} as events
        on
            events.agent_id = owners.agent_id
            and events.occurred_at >= owners.valid_from
            and events.occurred_at < period.valid_to
    where {{ is_new('owners.ingest_xid', saved_snapshot) }}
{% endmacro %}
