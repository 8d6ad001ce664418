-- Keeps the events of an array that differ from the recorded events of their keys, and
-- returns which these are. places has their zero-based indexes in the batch, unless the
-- array is the batch itself.
create or replace function token_tracking_raw.keep_conflicts(
    elements jsonb, places bigint[], moment timestamptz, out conflicts bigint, out problems jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
-- Index look-ups, also in a cached plan that was made when the table was small.
set enable_seqscan = off
set enable_indexscan = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
    -- Materialized: cleans each event once instead of at each use of a field.
    with cleaned as materialized (
        select * from token_tracking_raw.cleaned_events(elements, moment)
    ),

    differing as (
        select
            cleaned.place,
            cleaned.event,
            compared.differing_fields,
            compared.payload_hash
        from cleaned
        inner join token_tracking_raw.usage_events as recorded
            on
                (cleaned.event).tenant_id = recorded.tenant_id
                and (cleaned.event).idempotency_key = recorded.idempotency_key
        cross join lateral token_tracking_raw.payload_comparison(
            cleaned.event, cleaned.element ->> 'token_type', cleaned.element ->> 'operation', recorded
        ) as compared
        where compared.differing_fields <> ''
    ),

    kept as (
        insert into token_tracking_raw.usage_event_conflicts (
            tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
            conversation_id, collection_id, input_tokens, output_tokens, metadata, occurred_at,
            provider, service_tier, cache_read_tokens, cache_write_tokens, cache_write_long_tokens,
            reasoning_tokens, payload_hash, recorded_at
        )
        select (differing.event).*, differing.payload_hash, moment
        from differing
        order by
            (differing.event).tenant_id collate "C",
            (differing.event).idempotency_key collate "C",
            differing.payload_hash
        on conflict do nothing
    )

    select
        count(*),
        jsonb_agg(jsonb_build_object(
            'index', coalesce(places[differing.place + 1], differing.place),
            'kind', 'conflict',
            'reason', format(
                '%s: different from the event recorded with this idempotency_key; the first one counts',
                differing.differing_fields
            )
        ))
    into conflicts, problems
    from differing;
end
$$;
