-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    assigned.tenant_id,
    assigned.valid_from,
    assigned.revision,
    assigned.price_list,
    assigned.source,
    assigned.recorded_at,
    assigned.ingest_xid
from {{ source('token_tracking_raw', 'tenant_price_lists') }} as assigned
