-- Records a batch in the form that nearly all have, in one pass, or nothing at all: recorded is null
-- where a closer look is needed. That form is canonical JSON: no spaces, fields in the columns' order,
-- none of them null, no text that needs an escape, times in UTC without trailing zeros. The typed rows,
-- written as JSON again, are then the very text that came, which proves the type of each value and that
-- there is no other field; what is left are the tests of values. They let nothing through that
-- usage_event_problem refuses. It is null, too, where other writers were quicker time and again. total
-- is the number of events, suspects are those that may differ from what is recorded with their keys.
create or replace function token_tracking_raw.record_canonical_batch(
    events json, moment timestamptz, latest timestamptz,
    out recorded bigint, out total bigint, out suspects jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
-- The plan is kept: made while the table was small, it would read all of it for each look-up.
set enable_seqscan = off
set enable_indexscan = on
as $$
begin
    for attempt in 1..3 loop
        begin
            with written as materialized (
                select
                    event.*,
                    event.metadata_text::jsonb as metadata,
                    concat(
                        event.tenant_id, event.idempotency_key, event.token_type, event.operation,
                        event.model, event.agent_id, event.conversation_id, event.collection_id
                    ) as texts,
                    found.stored
                from rows from (
                    json_to_recordset(events) as (
                        tenant_id text, idempotency_key text, tokens bigint, token_type text,
                        operation text, model text, agent_id text, conversation_id text,
                        collection_id text, input_tokens bigint, output_tokens bigint,
                        metadata json, occurred_at timestamptz
                    )
                ) with ordinality as event (
                    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
                    conversation_id, collection_id, input_tokens, output_tokens, metadata_text,
                    occurred_at, position
                )
                -- a look-up each, and no join that reads the table
                left join lateral (
                    select usage_events
                    from token_tracking_raw.usage_events
                    where
                        usage_events.tenant_id = event.tenant_id
                        and usage_events.idempotency_key = event.idempotency_key
                    limit 1
                ) as found (stored) on true
            ),

            verdict as (
                select
                    bool_and((
                        -- Without these, quoted text is its own JSON: what else needs an escape no JSON holds.
                        strpos(written.texts, '"') = 0
                        and strpos(written.texts, chr(92)) = 0
                        and written.tenant_id <> ''
                        and written.idempotency_key <> ''
                        and coalesce(written.agent_id <> '', true)
                        and (
                            octet_length(written.texts) <= 255
                            or octet_length(written.tenant_id) <= 255
                            and octet_length(written.idempotency_key) <= 255
                            and octet_length(written.token_type) <= 255
                            and octet_length(written.operation) <= 255
                            and coalesce(octet_length(written.model) <= 255, true)
                            and coalesce(octet_length(written.agent_id) <= 255, true)
                            and coalesce(octet_length(written.conversation_id) <= 255, true)
                            and coalesce(octet_length(written.collection_id) <= 255, true)
                        )
                        and written.tokens between 0 and 1099511627776
                        and coalesce(written.input_tokens >= 0, true)
                        and coalesce(written.output_tokens >= 0, true)
                        and written.tokens
                        >= coalesce(written.input_tokens, 0) + coalesce(written.output_tokens, 0)
                        and written.metadata_text::text like '{%'
                        -- A number beyond all others has more than 308 digits.
                        and (
                            octet_length(written.metadata::text) <= 308
                            or octet_length(written.metadata::text) <= 16384
                            and not token_tracking_raw.has_huge_number(written.metadata)
                        )
                        and (
                            strpos(substr(written.metadata_text::text, 2), '{') = 0
                            and strpos(written.metadata_text::text, '[') = 0
                            or not jsonb_path_exists(written.metadata, 'strict $.**{8}')
                        )
                        and coalesce(written.occurred_at between '2000-01-01 00:00:00+00' and latest, true)
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
                            ',"metadata":', written.metadata_text,
                            ',"occurred_at":' || to_json(written.occurred_at)::text,
                            '}'
                        ), ','
                    ) || ']' = events::text as is_canonical
                from written
            ),

            inserted as (
                insert into token_tracking_raw.usage_events (
                    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
                    conversation_id, collection_id, input_tokens, output_tokens, metadata,
                    occurred_at, recorded_at, ingest_xid
                )
                select distinct on (written.tenant_id collate "C", written.idempotency_key collate "C")
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
                    written.metadata,
                    coalesce(written.occurred_at, moment),
                    moment,
                    (select pg_current_xact_id()::text::bigint)
                from written
                where
                    (select verdict.is_canonical from verdict)
                    and written.stored is null
                -- One order for all writers: two that share keys wait for each other and never both
                -- at once.
                order by
                    written.tenant_id collate "C",
                    written.idempotency_key collate "C",
                    written.position
                -- No "on conflict", which has each row announced and confirmed: a tenth more work.
                returning 1
            ),

            counts as (
                select
                    (select count(*) from inserted) as recorded,
                    count(*) filter (where written.stored is null) as fresh,
                    count(*) as total
                from written
            ),

            -- New keys that came twice.
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
                    select jsonb_agg(to_jsonb(written) - 'stored' order by written.position)
                    from written
                    where
                        written.stored is null
                        and (written.tenant_id, written.idempotency_key) in (
                            select repeated.tenant_id, repeated.idempotency_key from repeated
                        )
                        or not (written.stored is null) -- "is not null" of a row means all its fields
                        and (
                            written.tokens, written.input_tokens, written.output_tokens,
                            token_tracking_raw.cleaned_label(written.token_type),
                            token_tracking_raw.cleaned_label(written.operation),
                            nullif(written.model, ''), written.agent_id
                        ) is distinct from (
                            (written.stored).tokens, (written.stored).input_tokens,
                            (written.stored).output_tokens, (written.stored).token_type,
                            (written.stored).operation, (written.stored).model,
                            (written.stored).agent_id
                        )
                ) end
            into recorded, total, suspects
            from counts;
            return;
        exception
            when unique_violation then
                -- Another writer was quicker. The next attempt finds what that one has committed; but
                -- not with the one snapshot of REPEATABLE READ: the closer look says so to the caller.
                null;
            when data_exception or program_limit_exceeded then
                return;  -- a value that its column cannot hold
        end;
    end loop;
end
$$;
