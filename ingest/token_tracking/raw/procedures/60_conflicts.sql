-- Keeps the events of an array that differ from the recorded ones with their keys, and says which.
-- places are their zero-based indexes in the batch, where the array is not the batch itself.
create or replace function token_tracking_raw.keep_conflicts(
    elements jsonb, places bigint[], moment timestamptz, out conflicts bigint, out problems jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
-- Look-ups, whatever the plan that is kept was made for.
set enable_seqscan = off
set enable_indexscan = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
    with differing as (
        select
            event.*,
            sha256(convert_to(jsonb_build_array(
                event.tokens, event.input_tokens, event.output_tokens, event.token_type,
                event.operation, event.model, event.agent_id
            )::text, 'UTF8')) as payload_hash,
            concat_ws(', ',
                case when event.tokens <> stored.tokens then 'tokens' end,
                case when event.input_tokens is distinct from stored.input_tokens then 'input_tokens' end,
                case when event.output_tokens is distinct from stored.output_tokens then 'output_tokens' end,
                case when not labels.is_same_token_type then 'token_type' end,
                case when not labels.is_same_operation then 'operation' end,
                case when event.model is distinct from stored.model then 'model' end,
                case when event.agent_id is distinct from stored.agent_id then 'agent_id' end
            ) as fields
        from token_tracking_raw.usage_event_rows(elements) as event
        inner join token_tracking_raw.usage_events as stored
            on
                event.tenant_id = stored.tenant_id
                and event.idempotency_key = stored.idempotency_key
        cross join lateral (
            select
                elements -> event.place::integer as element,
                coalesce(stored.recorded_at <= (
                    select versions.applied_at
                    from token_tracking_raw.schema_versions as versions
                    where versions.version = 4
                ), false) as is_of_before
        ) as sent
        cross join lateral (
            select
                token_tracking_raw.is_recorded_label(
                    stored.token_type, coalesce(sent.element ->> 'token_type', 'llm'), sent.is_of_before
                ) as is_same_token_type,
                token_tracking_raw.is_recorded_label(
                    stored.operation, coalesce(sent.element ->> 'operation', 'query'), sent.is_of_before
                ) as is_same_operation
        ) as labels
        where
            (
                event.tokens, event.input_tokens, event.output_tokens, event.model, event.agent_id
            ) is distinct from (
                stored.tokens, stored.input_tokens, stored.output_tokens, stored.model, stored.agent_id
            )
            or not labels.is_same_token_type
            or not labels.is_same_operation
    ),

    kept as (
        insert into token_tracking_raw.usage_event_conflicts (
            tenant_id, idempotency_key, payload_hash, tokens, token_type, operation, model,
            agent_id, conversation_id, collection_id, input_tokens, output_tokens, metadata,
            occurred_at, recorded_at
        )
        select
            differing.tenant_id, differing.idempotency_key, differing.payload_hash,
            differing.tokens, differing.token_type, differing.operation, differing.model,
            differing.agent_id, differing.conversation_id, differing.collection_id,
            differing.input_tokens, differing.output_tokens, differing.metadata,
            coalesce(differing.occurred_at, moment), moment
        from differing
        order by differing.tenant_id collate "C", differing.idempotency_key collate "C", differing.payload_hash
        on conflict do nothing
    )

    select
        count(*),
        jsonb_agg(jsonb_build_object(
            'index', coalesce(places[differing.place + 1], differing.place), 'kind', 'conflict', 'reason',
            format('%s: other than recorded with this idempotency_key; the first one counts', differing.fields)
        ))
    into conflicts, problems
    from differing;
end
$$;
