-- Append only. Text is compared byte by byte (collate "C"): the same order on every machine, in
-- Python too, and the fastest one. Every row carries the transaction that wrote it, by which dbt
-- finds what is new; only the procedures write here, so a writer cannot choose it.

create table token_tracking_raw.usage_events (
    tenant_id text collate "C" not null,
    idempotency_key text collate "C" not null,
    tokens bigint not null,
    token_type text collate "C" not null,
    operation text collate "C" not null,
    model text collate "C",
    agent_id text collate "C",
    conversation_id text collate "C",
    collection_id text collate "C",
    input_tokens bigint,
    output_tokens bigint,
    metadata jsonb not null default '{}',
    occurred_at timestamptz not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (tenant_id, idempotency_key),
    constraint tokens_in_range check (tokens between 0 and 1099511627776)
);

comment on table token_tracking_raw.usage_events is
'One row per (tenant_id, idempotency_key): one LLM or embedding call, as the first caller told it. tenant_id is the requester.';
comment on column token_tracking_raw.usage_events.tenant_id is
'The requester: the tenant whose service made the call. Who pays is decided in the warehouse.';
comment on column token_tracking_raw.usage_events.idempotency_key is
'The caller''s name for this call, fixed before the first attempt; unique within the tenant, for ever.';
comment on column token_tracking_raw.usage_events.tokens is
'Tokens to count, at least input_tokens + output_tokens.';
comment on column token_tracking_raw.usage_events.token_type is
'The caller''s label, lower case without outer space; typed in the warehouse, where an unforeseen one counts as unknown.';
comment on column token_tracking_raw.usage_events.operation is
'The caller''s label, lower case without outer space; typed in the warehouse, where an unforeseen one counts as unknown.';
comment on column token_tracking_raw.usage_events.model is 'Model name, null where not told.';
comment on column token_tracking_raw.usage_events.input_tokens is 'Prompt tokens, null where not told.';
comment on column token_tracking_raw.usage_events.output_tokens is 'Completion tokens, null where not told.';
comment on column token_tracking_raw.usage_events.metadata is 'The caller''s own JSON object.';
comment on column token_tracking_raw.usage_events.occurred_at is 'When the call happened: event time.';
comment on column token_tracking_raw.usage_events.recorded_at is
'When the row was written: arrival time. Never decides what is read.';
comment on column token_tracking_raw.usage_events.ingest_xid is
'The 64-bit number of the transaction that wrote the row.';

-- Events of a period, for the rebuild of the hours that changed.
create index usage_events_occurred_at on token_tracking_raw.usage_events (occurred_at);
-- Rows new since a snapshot. BRIN has no operator class for xid8, hence bigint.
create index usage_events_ingest_xid on token_tracking_raw.usage_events
using brin (ingest_xid) with (pages_per_range = 32, autosummarize = on);
-- Events of an agent, for a backdated change of its owner.
create index usage_events_agent_id on token_tracking_raw.usage_events (agent_id, occurred_at)
where agent_id is not null;

create table token_tracking_raw.usage_event_conflicts (
    tenant_id text collate "C" not null,
    idempotency_key text collate "C" not null,
    payload_hash bytea not null,
    tokens bigint not null,
    token_type text collate "C" not null,
    operation text collate "C" not null,
    model text collate "C",
    agent_id text collate "C",
    conversation_id text collate "C",
    collection_id text collate "C",
    input_tokens bigint,
    output_tokens bigint,
    metadata jsonb not null,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (tenant_id, idempotency_key, payload_hash)
);

comment on table token_tracking_raw.usage_event_conflicts is
'One row per (tenant_id, idempotency_key) and payload that differs from the recorded one. Not counted: the first payload counts.';
comment on column token_tracking_raw.usage_event_conflicts.payload_hash is
'sha256 over tokens, parts, labels, model and agent, so that each different payload is kept once.';

create table token_tracking_raw.usage_event_rejections (
    rejection_key bytea primary key,
    payload json,
    reason text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint)
);

comment on table token_tracking_raw.usage_event_rejections is
'One row per refused payload. Not counted.';
comment on column token_tracking_raw.usage_event_rejections.rejection_key is
'sha256 of a payload that has an idempotency key, so that sending it again adds nothing; else random.';
comment on column token_tracking_raw.usage_event_rejections.payload is
'What was refused, to the letter up to 64 KiB; else the beginnings of its fields. json, not jsonb, which cannot hold \u0000.';
comment on column token_tracking_raw.usage_event_rejections.reason is
'The field, what was found and the rule that it breaks; never the value itself.';

create table token_tracking_raw.usage_voids (
    tenant_id text collate "C" not null,
    idempotency_key text collate "C" not null,
    reason text not null,
    voided_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (tenant_id, idempotency_key)
);

comment on table token_tracking_raw.usage_voids is
'One row per voided event, before or after the event itself. The event stays recorded and is not counted.';
comment on column token_tracking_raw.usage_voids.voided_by is 'The database session''s user.';

create index usage_voids_ingest_xid on token_tracking_raw.usage_voids
using brin (ingest_xid) with (pages_per_range = 32, autosummarize = on);

create table token_tracking_raw.agent_owners (
    agent_id text collate "C" not null,
    valid_from timestamptz not null,
    revision integer not null,
    owner_tenant_id text collate "C",
    recorded_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (agent_id, valid_from, revision),
    constraint revision_is_positive check (revision > 0)
);

comment on table token_tracking_raw.agent_owners is
'One row per agent, instant and revision: who owns the agent from that instant until its next one. The highest revision of an instant wins. Agent ids are unique across tenants.';
comment on column token_tracking_raw.agent_owners.valid_from is 'First instant of this ownership.';
comment on column token_tracking_raw.agent_owners.revision is
'Counts corrections of the same agent and instant, from 1.';
comment on column token_tracking_raw.agent_owners.owner_tenant_id is 'Null: nobody owns the agent from here on.';

create index agent_owners_ingest_xid on token_tracking_raw.agent_owners
using brin (ingest_xid) with (pages_per_range = 32, autosummarize = on);

create table token_tracking_raw.agent_owner_calls (
    call_id uuid primary key
);

comment on table token_tracking_raw.agent_owner_calls is
'One row per call that recorded an owner and has an id: sent again, it changes nothing, whatever was recorded since.';
