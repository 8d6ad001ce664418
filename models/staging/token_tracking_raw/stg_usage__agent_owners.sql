-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    owners.agent_id,
    owners.owner_tenant_id,
    owners.revision,
    owners.valid_from,
    owners.ingest_xid
from {{ source('token_tracking_raw', 'agent_owners') }} as owners
