-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    voids.tenant_id as requester_tenant_id,
    voids.idempotency_key,
    voids.ingest_xid
from {{ source('token_tracking_raw', 'usage_voids') }} as voids
