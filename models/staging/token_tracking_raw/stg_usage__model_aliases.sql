-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    aliases.provider,
    aliases.alias,
    aliases.valid_from,
    aliases.revision,
    aliases.priced_provider,
    aliases.priced_model,
    aliases.source,
    aliases.recorded_at,
    aliases.ingest_xid
from {{ source('token_tracking_raw', 'model_aliases') }} as aliases
