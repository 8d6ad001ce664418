{{ config(
    materialized='token_tracking_view',
    view_options='security_barrier = true',
    tenant_readable=true,
    grants={'select': []},
) }}

-- With the rights of its owner, for a tenant's reader has none on the mart itself,
-- which names the requesters: so the view holds the reader's own condition.
with

own_agents as (
    select
        agents.usage_date,
        agents.tenant_id,
        case
            when agents.requester_tenant_id = any({{ tenants_of_current_user() }})
                then agents.requester_tenant_id
        end as known_requester,
        agents.agent_id,
        agents.attribution_rule,
        agents.tokens,
        agents.event_count
    from {{ ref('daily_agent_token_usage') }} as agents
    where
        {{ is_tenant_of_current_user('agents.tenant_id') }}
),

-- one row per usage_date, tenant_id, known requester (or all others), agent_id,
-- attribution_rule
final as (
    select
        own_agents.usage_date,
        own_agents.tenant_id,
        own_agents.known_requester as requester_tenant_id,
        own_agents.agent_id,
        own_agents.attribution_rule,
        sum(own_agents.tokens)::bigint as tokens,
        sum(own_agents.event_count)::bigint as event_count
    from own_agents
    group by
        usage_date,
        tenant_id,
        known_requester,
        agent_id,
        attribution_rule
)

select * from final
