-- Records one event. Returns true if it is recorded now or was before, and if p_tokens
-- is null, which means that there is nothing to record. The parameters are in the order
-- of the procedure that it replaces.
create or replace function token_tracking_raw.track_token_usage(
    p_tenant_id text,
    p_tokens bigint,
    p_token_type text default 'llm',
    p_operation text default 'query',
    p_model text default null,
    p_metadata jsonb default '{}',
    p_idempotency_key text default null,
    p_agent_id text default null,
    p_conversation_id text default null
) returns boolean
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    -- In canonical JSON, which needs no closer look: see record_canonical_batch.
    select case when p_tokens is null then true else (
        select result.recorded + result.duplicates = 1
        from token_tracking_raw.track_token_usage_batch(cast('[{' || concat_ws(
            ',',
            '"tenant_id":' || to_json(p_tenant_id)::text,
            '"idempotency_key":' || to_json(coalesce(p_idempotency_key, gen_random_uuid()::text))::text,
            '"tokens":' || p_tokens,
            '"token_type":' || to_json(p_token_type)::text,
            '"operation":' || to_json(p_operation)::text,
            '"model":' || to_json(p_model)::text,
            '"agent_id":' || to_json(p_agent_id)::text,
            '"conversation_id":' || to_json(p_conversation_id)::text,
            '"metadata":' || coalesce(p_metadata, '{}')::text
        ) || '}]' as json)) as result
    ) end
$$;

-- For ids of type uuid. If a call has ids of both types, cast them to text.
create or replace function token_tracking_raw.track_token_usage(
    p_tenant_id uuid,
    p_tokens bigint,
    p_token_type text default 'llm',
    p_operation text default 'query',
    p_model text default null,
    p_metadata jsonb default '{}',
    p_idempotency_key text default null,
    p_agent_id uuid default null,
    p_conversation_id uuid default null
) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    select token_tracking_raw.track_token_usage(
        p_tenant_id::text, p_tokens, p_token_type, p_operation, p_model, p_metadata,
        p_idempotency_key, p_agent_id::text, p_conversation_id::text
    )
$$;
