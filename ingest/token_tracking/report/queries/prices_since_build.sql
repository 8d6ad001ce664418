-- one row: prices, aliases, rules and assignments recorded since the build of the costs
with

recorded as (
    select model_prices.ingest_xid from token_tracking_raw.model_prices
    union all
    select model_aliases.ingest_xid from token_tracking_raw.model_aliases
    union all
    select price_list_rules.ingest_xid from token_tracking_raw.price_list_rules
    union all
    select tenant_price_lists.ingest_xid from token_tracking_raw.tenant_price_lists
)

select count(*) as price_count
from recorded
where
    recorded.ingest_xid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)::text::bigint
    and not pg_visible_in_snapshot(recorded.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
