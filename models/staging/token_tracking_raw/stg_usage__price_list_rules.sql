-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    rules.price_list,
    rules.valid_from,
    rules.revision,
    rules.base_list,
    rules.factor,
    rules.source,
    rules.recorded_at,
    rules.ingest_xid
from {{ source('token_tracking_raw', 'price_list_rules') }} as rules
