-- Records a batch in canonical JSON, as nearly all are, in one pass. Otherwise it
-- records nothing and recorded is null: the batch needs a closer look. Canonical JSON
-- has no spaces, its fields in the order of the columns and none of them null, no text
-- that needs an escape, and times in UTC without trailing zeros. Its typed rows,
-- written as JSON again, give exactly the text that was sent. That proves the type of
-- each value and that there are no other fields; what remains to be checked are the
-- values. This accepts nothing that usage_event_problem refuses. recorded is also null
-- if other writers were faster several times. total is the number of events. suspects
-- are those that may differ from the recorded events of their keys, with their labels
-- as sent and their positions.
create or replace function token_tracking_raw.record_canonical_batch(
    events json, moment timestamptz, latest timestamptz,
    out recorded bigint, out total bigint, out suspects jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
-- The plan is cached: made while the table was small, it would scan the whole table at
-- each look-up.
set enable_seqscan = off
set enable_indexscan = on
as $$
begin
    for attempt in 1..3 loop
        begin
            with written as materialized (
                select
                    event.*,
                    event.metadata::jsonb as parsed_metadata,
                    concat(
                        event.tenant_id, event.idempotency_key, event.token_type, event.operation,
                        event.model, event.agent_id, event.conversation_id, event.collection_id,
                        event.provider, event.service_tier
                    ) as texts,
                    found.stored
                from rows from (
                    json_to_recordset(events) as (
                        tenant_id text, idempotency_key text, tokens bigint, token_type text,
                        operation text, model text, agent_id text, conversation_id text,
                        collection_id text, input_tokens bigint, output_tokens bigint,
                        metadata json, occurred_at timestamptz, provider text, service_tier text,
                        cache_read_tokens bigint, cache_write_tokens bigint,
                        cache_write_long_tokens bigint, reasoning_tokens bigint
                    )
                ) with ordinality as event
                -- One look-up for each event, instead of a join that scans the table.
                left join lateral (
                    select usage_events
                    from token_tracking_raw.usage_events
                    where
                        usage_events.tenant_id = event.tenant_id
                        and usage_events.idempotency_key = event.idempotency_key
                    limit 1
                ) as found (stored) on true
            ),

            -- Not materialized: the planner moves each expression to where its field is
            -- used.
            cleaned as not materialized (
                select
                    written.ordinality as position,
                    written.token_type as sent_token_type,
                    written.operation as sent_operation,
                    written.stored,
                    row(
                        written.tenant_id,
                        written.idempotency_key,
                        written.tokens,
                        token_tracking_raw.cleaned_label(written.token_type),
                        token_tracking_raw.cleaned_label(written.operation),
                        nullif(written.model, ''),
                        written.agent_id,
                        nullif(written.conversation_id, ''),
                        nullif(written.collection_id, ''),
                        written.input_tokens,
                        written.output_tokens,
                        written.parsed_metadata,
                        coalesce(written.occurred_at, moment),
                        nullif(token_tracking_raw.cleaned_label(written.provider), ''),
                        nullif(token_tracking_raw.cleaned_label(written.service_tier), ''),
                        written.cache_read_tokens,
                        written.cache_write_tokens,
                        written.cache_write_long_tokens,
                        written.reasoning_tokens
                    )::token_tracking_raw.usage_event as event
                from written
            ),

            verdict as (
                select
                    bool_and((
                        -- Text without these is its own JSON when quoted: other
                        -- characters that need an escape cannot occur in JSON.
                        strpos(written.texts, '"') = 0
                        and strpos(written.texts, chr(92)) = 0
                        and written.tenant_id <> ''
                        and written.idempotency_key <> ''
                        and coalesce(written.agent_id <> '', true)
                        and (
                            octet_length(written.texts) <= token_tracking_raw.max_text()
                            or greatest(
                                octet_length(written.tenant_id), octet_length(written.idempotency_key),
                                octet_length(written.token_type), octet_length(written.operation),
                                octet_length(written.model), octet_length(written.agent_id),
                                octet_length(written.conversation_id), octet_length(written.collection_id),
                                octet_length(written.provider), octet_length(written.service_tier)
                            ) <= token_tracking_raw.max_text()
                        )
                        and written.tokens between 0 and token_tracking_raw.max_tokens()
                        and coalesce(written.input_tokens >= 0, true)
                        and coalesce(written.output_tokens >= 0, true)
                        and written.tokens
                        >= coalesce(written.input_tokens, 0) + coalesce(written.output_tokens, 0)
                        -- A part needs its whole, even if it is 0.
                        and (
                            num_nonnulls(written.cache_read_tokens, written.cache_write_tokens) = 0
                            or least(written.cache_read_tokens, written.cache_write_tokens) >= 0
                            and coalesce(written.input_tokens, -1)
                            >= coalesce(written.cache_read_tokens, 0) + coalesce(written.cache_write_tokens, 0)
                        )
                        and (
                            written.cache_write_long_tokens is null
                            or written.cache_write_long_tokens between 0 and coalesce(written.cache_write_tokens, -1)
                        )
                        and (
                            written.reasoning_tokens is null
                            or written.reasoning_tokens between 0 and coalesce(written.output_tokens, -1)
                        )
                        and written.metadata::text like '{%'
                        -- A number beyond the range of a double has more than 308
                        -- digits.
                        and (
                            octet_length(written.parsed_metadata::text) <= 308
                            or octet_length(written.parsed_metadata::text) <= token_tracking_raw.max_metadata_bytes()
                            and not token_tracking_raw.has_huge_number(written.parsed_metadata)
                        )
                        and (
                            strpos(substr(written.metadata::text, 2), '{') = 0
                            and strpos(written.metadata::text, '[') = 0
                            or not jsonb_path_exists(written.parsed_metadata, 'strict $.**{8}')
                        )
                        and coalesce(written.occurred_at between token_tracking_raw.earliest_time() and latest, true)
                    ) is true)
                    and '[' || string_agg(
                        concat(
                            '{"tenant_id":"', written.tenant_id,
                            '","idempotency_key":"', written.idempotency_key,
                            '","tokens":', written.tokens,
                            ',"token_type":"', written.token_type,
                            '","operation":"', written.operation,
                            '","model":"' || written.model,
                            '","agent_id":"' || written.agent_id,
                            '","conversation_id":"' || written.conversation_id,
                            '","collection_id":"' || written.collection_id,
                            '"',
                            ',"input_tokens":' || written.input_tokens,
                            ',"output_tokens":' || written.output_tokens,
                            ',"metadata":', written.metadata,
                            ',"occurred_at":' || to_json(written.occurred_at)::text,
                            ',"provider":"' || written.provider || '"',
                            ',"service_tier":"' || written.service_tier || '"',
                            ',"cache_read_tokens":' || written.cache_read_tokens,
                            ',"cache_write_tokens":' || written.cache_write_tokens,
                            ',"cache_write_long_tokens":' || written.cache_write_long_tokens,
                            ',"reasoning_tokens":' || written.reasoning_tokens,
                            '}'
                        ), ','
                    ) || ']' = events::text as is_canonical
                from written
            ),

            inserted as (
                insert into token_tracking_raw.usage_events (
                    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
                    conversation_id, collection_id, input_tokens, output_tokens, metadata,
                    occurred_at, provider, service_tier, cache_read_tokens, cache_write_tokens,
                    cache_write_long_tokens, reasoning_tokens, recorded_at, ingest_xid
                )
                select distinct on (
                    (cleaned.event).tenant_id collate "C", (cleaned.event).idempotency_key collate "C"
                )
                    (cleaned.event).*,
                    moment,
                    (select pg_current_xact_id()::text::bigint)
                from cleaned
                where
                    (select verdict.is_canonical from verdict)
                    and cleaned.stored is null
                -- All writers use this order, so two that share keys cannot deadlock.
                order by
                    (cleaned.event).tenant_id collate "C",
                    (cleaned.event).idempotency_key collate "C",
                    cleaned.position
                -- No "on conflict": its speculative insertions are a tenth more work.
                returning 1
            ),

            counts as (
                select
                    (select count(*) from inserted) as recorded,
                    count(*) filter (where written.stored is null) as fresh,
                    count(*) as total
                from written
            ),

            -- New keys that the batch has more than once.
            repeated as (
                select written.tenant_id, written.idempotency_key
                from counts
                cross join written
                where
                    (select verdict.is_canonical from verdict)
                    and counts.recorded < counts.fresh
                    and written.stored is null
                group by written.tenant_id, written.idempotency_key
                having count(*) > 1
            )

            select
                case when (select verdict.is_canonical from verdict) then counts.recorded end,
                counts.total,
                case when (select verdict.is_canonical from verdict) then (
                    select jsonb_agg(
                        to_jsonb(cleaned.event) || jsonb_build_object(
                            'token_type', cleaned.sent_token_type,
                            'operation', cleaned.sent_operation,
                            'position', cleaned.position
                        )
                        order by cleaned.position
                    )
                    from cleaned
                    cross join lateral token_tracking_raw.payload_comparison(
                        cleaned.event, cleaned.sent_token_type, cleaned.sent_operation, cleaned.stored
                    ) as compared
                    where
                        cleaned.stored is null
                        and ((cleaned.event).tenant_id, (cleaned.event).idempotency_key) in (
                            select repeated.tenant_id, repeated.idempotency_key from repeated
                        )
                        -- Not "is not null", which is true of a row only if no field is
                        -- null.
                        or not (cleaned.stored is null) and compared.differing_fields <> ''
                ) end
            into recorded, total, suspects
            from counts;
            return;
        exception
            when unique_violation then
                -- Another writer was faster. The next attempt finds what that one
                -- committed, except in REPEATABLE READ, which has one snapshot: there
                -- the closer look raises the error.
                null;
            when data_exception or program_limit_exceeded then
                return; -- a value that its column cannot hold
        end;
    end loop;
end
$$;
