{% macro corrected_events(snapshot) -%}
    {#- Events that the proof's snapshot saw, and whose void or owner it did not see. Not all of them
        count otherwise: each is counted by both states. -#}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- set voids = source('token_tracking_raw', 'usage_voids') -%}
    {%- set owners = source('token_tracking_raw', 'agent_owners') -%}
    -- one row per agent and instant, with the instant of the agent's next row
    owned_periods as (
        select
            instants.agent_id,
            instants.valid_from,
            lead(instants.valid_from, 1, 'infinity') over (
                partition by instants.agent_id order by instants.valid_from
            ) as valid_to,
            instants.is_new
        from (
            select
                owners.agent_id,
                owners.valid_from,
                bool_or({{ is_unproved('owners.ingest_xid', snapshot) }}) as is_new
            from {{ owners }} as owners
            where
                owners.agent_id = any(array(
                    select new_owners.agent_id
                    from {{ owners }} as new_owners
                    where {{ is_unproved('new_owners.ingest_xid', snapshot) }}
                ))
            group by
                owners.agent_id,
                owners.valid_from
        ) as instants
    ),

    corrected_keys as (
        select
            voids.tenant_id,
            voids.idempotency_key
        from {{ voids }} as voids
        where {{ is_unproved('voids.ingest_xid', snapshot) }}

        union

        select
            of_agent.tenant_id,
            of_agent.idempotency_key
        from owned_periods
        cross join lateral (
            select
                events.tenant_id,
                events.idempotency_key
            from {{ events }} as events
            where
                events.agent_id = owned_periods.agent_id
                and events.occurred_at >= owned_periods.valid_from
                and events.occurred_at < owned_periods.valid_to
            offset 0
        ) as of_agent
        where owned_periods.is_new
    ),

    corrected as (
        select of_key.*
        from corrected_keys
        cross join lateral (
            select {{ counted_columns('events') }}
            from {{ events }} as events
            where
                events.tenant_id = corrected_keys.tenant_id
                and events.idempotency_key = corrected_keys.idempotency_key
            offset 0
        ) as of_key
        where not ({{ is_unproved('of_key.ingest_xid', snapshot) }})
    )
{%- endmacro %}


{% macro is_unproved(ingest_xid, snapshot) -%}
    {#- The index needs a literal; another run of the test may have proved more since that was read. -#}
    {{ is_new(ingest_xid, snapshot) }}
    and not pg_visible_in_snapshot({{ ingest_xid }}::text::xid8, ({{ saved_proof('snapshot') }}))
{%- endmacro %}


{% macro new_or_corrected_events(snapshot) -%}
    (
        select {{ counted_columns('events') }}
        from {{ source('token_tracking_raw', 'usage_events') }} as events
        where {{ is_unproved('events.ingest_xid', snapshot) }}

        union all

        select corrected.* from corrected
    )
{%- endmacro %}


{% macro counted_columns(events) -%}
    {#- Without the payload. -#}
    {%- set columns = [
        'tenant_id', 'idempotency_key', 'agent_id', 'token_type', 'operation', 'model', 'tokens',
        'occurred_at', 'ingest_xid', 'provider', 'service_tier',
    ] + token_parts() -%}
    {{ events }}.{{ columns | join(', ' ~ events ~ '.') }}
{%- endmacro %}
