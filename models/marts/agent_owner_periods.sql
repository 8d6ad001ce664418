{{ config(
    materialized='token_tracking_view',
    post_hook="{{ billed_events(ref('usage_events'), this) }}",
) }}

-- depends_on: {{ ref('usage_events') }}

-- No CTE: PostgreSQL could not look a tenant's agents up in it.
-- one row per agent_id and valid_from: of several revisions the latest counts
select
    owners.agent_id,
    owners.owner_tenant_id,
    owners.valid_from,
    {{ ownership_end(ref('stg_usage__agent_owners'), 'owners') }} as valid_to
from {{ ref('stg_usage__agent_owners') }} as owners
where
    owners.revision = (
        select max(revised.revision)
        from {{ ref('stg_usage__agent_owners') }} as revised
        where
            revised.agent_id = owners.agent_id
            and revised.valid_from = owners.valid_from
    )
