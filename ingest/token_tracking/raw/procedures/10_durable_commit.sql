-- The unified procedures: the only way into the raw tables, from any language. They run with their
-- owner's rights and a fixed search path, so a caller needs nothing but the right to execute them. And
-- without jit: where a planner setting is off (enable_nestloop, enable_sort), PostgreSQL before 18 takes the
-- plan of a few rows for one that costs enough to be compiled, for half a second.

create or replace function token_tracking_raw.require_durable_commit() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- In the body and not as a SET clause, which would be undone before the commit.
    if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- A transaction that writes nothing waits for no standby. But the row that a repeated call finds
    -- may not have reached one: its own transaction's wait can have been cancelled. So each call
    -- writes something to the log, and its commit waits for all that came before.
    if current_setting('synchronous_standby_names', true) <> '' then
        perform pg_logical_emit_message(true, 'token_tracking', '');
    end if;
end
$$;
