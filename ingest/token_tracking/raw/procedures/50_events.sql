-- Returns the time that ISO 8601 text says; digits past microseconds are cut, where PostgreSQL would
-- round and so move an event into the next day.
create or replace function token_tracking_raw.instant_of(iso text) returns timestamptz
language sql stable
as $$
    select case
        when length(substr(iso, 21, 7)) = 7 and translate(substr(iso, 21, 7), '0123456789', '') = ''
            then left(iso, 26) || ltrim(substr(iso, 27), '0123456789')
        else iso
    end::timestamptz
$$;

-- Returns a label in lower case and without outer space.
create or replace function token_tracking_raw.cleaned_label(label text) returns text
language sql immutable
-- No SET clause: the planner puts the body in the caller's statement.
as $$
    -- \x0b and not \v, which is the letter v before PostgreSQL 17.
    select lower(btrim(label, e' \t\n\r\f\x0b') collate "C")
$$;

-- Says whether a label is the recorded one. Up to version 3 of the schema PostgreSQL 15 and 16 took outer
-- letters v away and left vertical tabs, so a row of before can have that form of the label, also where
-- a dump has brought it to another server.
create or replace function token_tracking_raw.is_recorded_label(
    recorded text, label text, recorded_before_version_4 boolean
) returns boolean
language sql immutable
as $$
    select
        recorded = token_tracking_raw.cleaned_label(label)
        or recorded_before_version_4 and recorded = lower(btrim(label, e' \t\n\r\fv') collate "C")
$$;

-- Returns the typed rows of an array of objects, cleaned, with their zero-based place. An element
-- without tenant (an emptied one) has no row.
create or replace function token_tracking_raw.usage_event_rows(elements jsonb)
returns table (
    place bigint, tenant_id text, idempotency_key text, tokens bigint, token_type text,
    operation text, model text, agent_id text, conversation_id text, collection_id text,
    input_tokens bigint, output_tokens bigint, metadata jsonb, occurred_at timestamptz
)
language sql stable
-- No SET clause: the planner puts the body in the caller's statement. All names are built in or
-- qualified.
as $$
    select
        event.position - 1,
        event.tenant_id,
        event.idempotency_key,
        case
            when coalesce(event.tokens, 0) = 0
                then coalesce(event.input_tokens, 0) + coalesce(event.output_tokens, 0)
            else event.tokens
        end::bigint,
        token_tracking_raw.cleaned_label(coalesce(event.token_type, 'llm')),
        token_tracking_raw.cleaned_label(coalesce(event.operation, 'query')),
        nullif(event.model, ''),
        event.agent_id,
        nullif(event.conversation_id, ''),
        nullif(event.collection_id, ''),
        event.input_tokens::bigint,
        event.output_tokens::bigint,
        coalesce(event.metadata, '{}'),
        token_tracking_raw.instant_of(event.occurred_at)
    from rows from (
        jsonb_to_recordset(elements) as (
            tenant_id text, idempotency_key text, tokens numeric, token_type text, operation text,
            model text, agent_id text, conversation_id text, collection_id text,
            input_tokens numeric, output_tokens numeric, metadata jsonb, occurred_at text
        )
    ) with ordinality as event (
        tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
        conversation_id, collection_id, input_tokens, output_tokens, metadata, occurred_at,
        position
    )
    where event.tenant_id is not null
$$;
