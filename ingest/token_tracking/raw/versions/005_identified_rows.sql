-- A table in a publication (for all tables, say) refuses to delete a row that it cannot name. This one
-- has no primary key, for a tenant may be null.

alter table token_tracking_raw.tenant_readers replica identity full;
