-- one row per event that a build with this snapshot counts, with its payer and its date
-- in the billing time zone: read from the raw tables alone. Without CTEs, so that the
-- planner merges it with the query around it.
select
    events.occurred_at,
    (events.occurred_at at time zone {zone})::date as usage_date,
    coalesce(ownerships.owner_tenant_id, events.tenant_id) as tenant_id,
    events.tenant_id as requester_tenant_id,
    events.agent_id,
    case
        when ownerships.owner_tenant_id is null then 'unknown_agent'
        else 'agent_owner'
    end as attribution_rule,
    events.token_type,
    events.operation,
    events.model,
    events.provider,
    events.service_tier,
    events.tokens,
    events.input_tokens,
    events.output_tokens,
    events.cache_read_tokens,
    events.cache_write_tokens,
    events.cache_write_long_tokens,
    events.reasoning_tokens
from token_tracking_raw.usage_events as events
left join (
    select
        owners.agent_id,
        owners.owner_tenant_id,
        owners.valid_from,
        lead(owners.valid_from, 1, 'infinity') over (
            partition by owners.agent_id order by owners.valid_from
        ) as valid_to
    from (
        -- one row per agent and instant: its newest revision
        select distinct on (agent_owners.agent_id, agent_owners.valid_from)
            agent_owners.agent_id,
            agent_owners.valid_from,
            agent_owners.owner_tenant_id
        from token_tracking_raw.agent_owners
        where pg_visible_in_snapshot(agent_owners.ingest_xid::text::xid8, {snapshot})
        order by agent_owners.agent_id, agent_owners.valid_from, agent_owners.revision desc
    ) as owners
) as ownerships
    on
        events.agent_id = ownerships.agent_id
        and events.occurred_at >= ownerships.valid_from
        and events.occurred_at < ownerships.valid_to
where
    (
        -- true of nearly all events, without a look at the snapshot
        events.ingest_xid < (select pg_snapshot_xmin({snapshot})::text::bigint)
        or pg_visible_in_snapshot(events.ingest_xid::text::xid8, {snapshot})
    )
    and not exists (
        select 1
        from token_tracking_raw.usage_voids as voids
        where
            voids.tenant_id = events.tenant_id
            and voids.idempotency_key = events.idempotency_key
            and pg_visible_in_snapshot(voids.ingest_xid::text::xid8, {snapshot})
    )
