-- Who of the database's own users reads which tenant's usage in the warehouse. A role that is not named
-- here reads nobody's. Beside the raw tables, since the warehouse can be dropped and built anew.

create table token_tracking_raw.tenant_readers (
    role_name text not null,
    tenant_id text,
    unique nulls not distinct (role_name, tenant_id)
);

comment on table token_tracking_raw.tenant_readers is
'One row per role and tenant whose usage it reads. Asked by the policies of the marts.';
comment on column token_tracking_raw.tenant_readers.role_name is
'The login role itself: what current_user says, not a group.';
comment on column token_tracking_raw.tenant_readers.tenant_id is
'The payer. Null: whichever tenant the session''s setting token_tracking.tenant_id names, so everybody; only for a backend that is trusted with that.';

alter table token_tracking_raw.tenant_readers enable row level security;
create policy own_rows on token_tracking_raw.tenant_readers for select using (role_name = current_user);
