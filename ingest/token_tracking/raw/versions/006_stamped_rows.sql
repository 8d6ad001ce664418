-- The number of a row is that of the transaction that writes it, whoever writes it. A row that logical
-- replication brings, or a restore of data alone, carries the number of another time or cluster: builds
-- would take it for one that they have seen, or refuse it. Writers who leave the number to the column's
-- default pay for one comparison.

create or replace function token_tracking_raw.stamp_row() returns trigger
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
            'create trigger stamp_row before insert on token_tracking_raw.%I for each row'
            ' when (new.ingest_xid is distinct from pg_current_xact_id()::text::bigint)'
            ' execute function token_tracking_raw.stamp_row()', raw_table
        );
        execute format(
            'alter table token_tracking_raw.%I enable always trigger stamp_row', raw_table
        );
        execute format(
            'create trigger keep_stamp before update on token_tracking_raw.%I for each row'
            ' execute function token_tracking_raw.stamp_row()', raw_table
        );
        execute format(
            'alter table token_tracking_raw.%I enable replica trigger keep_stamp', raw_table
        );
    end loop;
end
$triggers$;
