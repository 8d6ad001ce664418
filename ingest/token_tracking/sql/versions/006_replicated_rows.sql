-- A row that logical replication brings carries the number of a transaction of another cluster, which
-- says nothing here: builds would take it for one that they have seen, or refuse it. It gets that of the
-- transaction which applies it. These triggers fire for nobody else, and cost no other writer anything.

create or replace function token_tracking_raw.stamp_replicated_row() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- An update changes nothing that is counted: the row is not new to a build that has seen it.
    new.ingest_xid := case tg_op
        when 'INSERT' then pg_current_xact_id()::text::bigint
        else old.ingest_xid
    end;
    return new;
end
$$;

do $triggers$
declare
    raw_table text;
begin
    foreach raw_table in array array[
        'usage_events', 'usage_event_conflicts', 'usage_event_rejections', 'usage_voids', 'agent_owners'
    ] loop
        execute format(
            'create trigger stamp_replicated_row before insert or update on token_tracking_raw.%I'
            ' for each row execute function token_tracking_raw.stamp_replicated_row()', raw_table
        );
        execute format(
            'alter table token_tracking_raw.%I enable replica trigger stamp_replicated_row', raw_table
        );
    end loop;
end
$triggers$;
