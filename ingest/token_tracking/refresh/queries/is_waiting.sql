-- one row: whether any raw row is new since the snapshot of its kind, by the rule of the
-- dbt macro is_new
with

raw_rows as (
    select
        events.ingest_xid,
        %(since)s::pg_snapshot as since
    from token_tracking_raw.usage_events as events

    union all

    select
        voids.ingest_xid,
        %(since)s::pg_snapshot as since
    from token_tracking_raw.usage_voids as voids

    union all

    select
        owners.ingest_xid,
        %(since)s::pg_snapshot as since
    from token_tracking_raw.agent_owners as owners

    union all

    select
        prices.ingest_xid,
        %(prices_since)s::pg_snapshot as since
    from token_tracking_raw.model_prices as prices

    union all

    select
        aliases.ingest_xid,
        %(prices_since)s::pg_snapshot as since
    from token_tracking_raw.model_aliases as aliases

    union all

    select
        rules.ingest_xid,
        %(prices_since)s::pg_snapshot as since
    from token_tracking_raw.price_list_rules as rules

    union all

    select
        assigned.ingest_xid,
        %(prices_since)s::pg_snapshot as since
    from token_tracking_raw.tenant_price_lists as assigned
)

select exists(
    select
    from raw_rows
    where
        raw_rows.ingest_xid >= pg_snapshot_xmin(raw_rows.since)::text::bigint
        and not pg_visible_in_snapshot(raw_rows.ingest_xid::text::xid8, raw_rows.since)
) as is_waiting
