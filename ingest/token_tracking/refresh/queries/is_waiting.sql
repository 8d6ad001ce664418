-- one row: whether any raw row is new since a snapshot, by the rule of the dbt macro
-- is_new
with

raw_rows as (
    select events.ingest_xid
    from token_tracking_raw.usage_events as events

    union all

    select voids.ingest_xid
    from token_tracking_raw.usage_voids as voids

    union all

    select owners.ingest_xid
    from token_tracking_raw.agent_owners as owners
)

select exists(
    select
    from raw_rows
    where
        raw_rows.ingest_xid >= pg_snapshot_xmin(%(since)s::pg_snapshot)::text::bigint
        and not pg_visible_in_snapshot(raw_rows.ingest_xid::text::xid8, %(since)s::pg_snapshot)
) as is_waiting
