-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    prices.price_list,
    prices.provider,
    prices.model,
    prices.token_kind,
    prices.service_tier,
    prices.context_over,
    prices.valid_from,
    prices.revision,
    prices.currency,
    prices.amount,
    prices.source,
    prices.recorded_at,
    prices.ingest_xid
from {{ source('token_tracking_raw', 'model_prices') }} as prices
