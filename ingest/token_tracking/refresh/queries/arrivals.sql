-- one row: what is new since a snapshot and visible in a later one, by default that of
-- this query
with

raw_rows as (
    select
        'event' as kind,
        events.ingest_xid,
        events.recorded_at
    from token_tracking_raw.usage_events as events

    union all

    select
        'void' as kind,
        voids.ingest_xid,
        voids.recorded_at
    from token_tracking_raw.usage_voids as voids

    union all

    select
        'owner' as kind,
        owners.ingest_xid,
        owners.recorded_at
    from token_tracking_raw.agent_owners as owners
)

select
    count(*) filter (where raw_rows.kind = 'event') as events,
    count(*) filter (where raw_rows.kind = 'void') as voids,
    count(*) filter (where raw_rows.kind = 'owner') as owners,
    extract(epoch from statement_timestamp() - min(raw_rows.recorded_at))::float8 as lag
from raw_rows
where
    raw_rows.ingest_xid >= pg_snapshot_xmin(%(since)s::pg_snapshot)::text::bigint
    and not pg_visible_in_snapshot(raw_rows.ingest_xid::text::xid8, %(since)s::pg_snapshot)
    and pg_visible_in_snapshot(
        raw_rows.ingest_xid::text::xid8, coalesce(%(until)s::pg_snapshot, pg_current_snapshot())
    )
