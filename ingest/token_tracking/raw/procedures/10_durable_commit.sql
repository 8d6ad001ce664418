-- The procedures are the only way into the raw tables, from any language. They run with
-- their owner's rights and a fixed search path, so a caller needs only the right to
-- execute them. They run without JIT: when a planner setting such as enable_nestloop is
-- off, PostgreSQL before 18 overestimates the cost of a plan for a few rows and spends
-- half a second compiling it.

-- Makes the commit of the calling transaction durable, whatever the session has set.
create or replace function token_tracking_raw.require_durable_commit() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Set in the body: a SET clause would be undone before the commit.
    if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- A transaction that writes nothing does not wait for a standby, but the row that a
    -- repeated call finds may not have reached one: the wait of the transaction that
    -- wrote it may have been cancelled. So each call writes to the log, and its commit
    -- waits for everything before it.
    if current_setting('synchronous_standby_names', true) <> '' then
        perform pg_logical_emit_message(true, 'token_tracking', '');
    end if;
end
$$;
