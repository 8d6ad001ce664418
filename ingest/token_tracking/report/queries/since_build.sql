-- one row: what was recorded since the build, and will count in the next one
select
    (
        select count(*)
        from token_tracking_raw.usage_events as events
        where
            events.ingest_xid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)::text::bigint
            and not pg_visible_in_snapshot(
                events.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot
            )
    ) as event_count,
    (
        select count(*)
        from token_tracking_raw.usage_voids as voids
        where
            voids.ingest_xid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)::text::bigint
            and not pg_visible_in_snapshot(voids.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot)
    ) + (
        select count(*)
        from token_tracking_raw.agent_owners as owners
        where
            owners.ingest_xid >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)::text::bigint
            and not pg_visible_in_snapshot(
                owners.ingest_xid::text::xid8, %(snapshot)s::pg_snapshot
            )
    ) as correction_count
