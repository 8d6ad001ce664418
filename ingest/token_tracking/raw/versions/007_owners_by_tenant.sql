-- The agents that a tenant has owned are looked up by the tenant: their events are billed to it.

create index agent_owners_owner_tenant_id on token_tracking_raw.agent_owners (owner_tenant_id);
