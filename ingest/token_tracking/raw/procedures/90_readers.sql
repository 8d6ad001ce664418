-- For the totals as of now. Returns the payers whose usage the reader may see: the role
-- that the session has logged in as, or has changed to with SET ROLE. Functions in
-- between, which run with their owner's rights, neither add to it nor take away.
create or replace function token_tracking_raw.tenants_of_reader() returns text[]
language sql stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select
        coalesce(
            array_agg(coalesce(readers.tenant_id, current_setting('token_tracking.tenant_id', true))),
            '{}'
        )
    from token_tracking_raw.tenant_readers as readers
    where
        readers.role_name = case current_setting('role')
            when 'none' then session_user::text
            else current_setting('role')
        end
$$;

comment on function token_tracking_raw.tenants_of_reader() is
'The payers whose usage the session''s role may read, by tenant_readers.';
