-- For loads of files. Returns whether an event of a period was recorded by a
-- transaction before p_before. Returns true as well if there are too many newer events
-- to find out quickly.
create or replace function token_tracking_raw.has_usage_between(
    p_from timestamptz, p_to timestamptz, p_before bigint
) returns boolean
language sql stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
    select count(*) = 1000 or coalesce(bool_or(event.ingest_xid < p_before), false)
    from (
        select usage_events.ingest_xid
        from token_tracking_raw.usage_events
        where usage_events.occurred_at between p_from and p_to
        limit 1000
    ) as event
$$;

-- Returns one row if the key is voided. In a lateral join this is one index look-up for
-- each row.
create or replace function token_tracking_raw.void_of(p_tenant_id text, p_idempotency_key text)
returns table (is_void boolean)
language sql stable
-- No SET clause: it would keep the planner from inlining the function.
as $$
    select true
    from token_tracking_raw.usage_voids
    where usage_voids.tenant_id = p_tenant_id and usage_voids.idempotency_key = p_idempotency_key
    limit 1
$$;

-- For loads of files. Returns what is already recorded of the events of an array, by
-- zero-based index:
--   other_time  the key is recorded with this other time
--   voided      the key is voided
--   alike       the key is not recorded, but before p_before there were events that
--               differ in nothing but their keys
--   spaced_key  as alike, and the keys differ only in leading or trailing space
-- p_own has further keys of the same file. An event can be alike to several groups of
-- equal events. Each group has an identifier made of its values and its number of
-- events; groups with more equal fields come first.
create or replace function token_tracking_raw.recorded_usage(
    events json, p_before bigint, p_own text[]
) returns table (
    index bigint, kind text, occurred_at timestamptz, likeness bigint, event_count bigint
)
language sql stable
security definer
set search_path = pg_catalog, pg_temp
-- Index look-ups, and joins that do not compare each event with each other one.
set enable_seqscan = off
set enable_nestloop = off
set jit = off
as $$
    with given as materialized (
        select event.*, event.ordinality - 1 as place, stored.occurred_at as recorded_time
        -- A load has checked its events, so the slow closer look is not needed.
        from json_populate_recordset(
            null::token_tracking_raw.usage_event, events
        ) with ordinality as event
        left join lateral (
            select usage_events.occurred_at
            from token_tracking_raw.usage_events
            where
                usage_events.tenant_id = event.tenant_id
                and usage_events.idempotency_key = event.idempotency_key
            limit 1
        ) as stored on true
    ),

    fresh as materialized (
        select
            given.place,
            given.tenant_id,
            given.idempotency_key,
            given.tokens,
            token_tracking_raw.cleaned_label(given.token_type) as token_type,
            token_tracking_raw.cleaned_label(given.operation) as operation,
            given.model,
            given.agent_id,
            given.conversation_id,
            given.collection_id,
            given.input_tokens,
            given.output_tokens,
            coalesce(given.metadata, '{}') as metadata,
            given.occurred_at,
            nullif(token_tracking_raw.cleaned_label(given.provider), '') as provider,
            nullif(token_tracking_raw.cleaned_label(given.service_tier), '') as service_tier,
            given.cache_read_tokens,
            given.cache_write_tokens,
            given.cache_write_long_tokens,
            given.reasoning_tokens
        from given
        where given.recorded_time is null
    ),

    times as materialized (
        select distinct fresh.occurred_at from fresh
    ),

    near as materialized (
        select stored.*
        from times
        cross join lateral (
            select usage_events.*
            from token_tracking_raw.usage_events
            where usage_events.occurred_at = times.occurred_at and usage_events.ingest_xid < p_before
            offset 0
        ) as stored
        where btrim(stored.tenant_id) in (select fresh.tenant_id from fresh)
    ),

    -- one row per group of events that are equal but for their keys
    others as materialized (
        select
            btrim(stored.tenant_id) as tenant_id,
            -- Only a key with leading or trailing space can be a file's own key in
            -- another form.
            nullif(stored.idempotency_key, btrim(stored.idempotency_key)) as spaced_key,
            stored.tokens,
            stored.token_type,
            stored.operation,
            btrim(stored.model) as model,
            btrim(stored.agent_id) as agent_id,
            btrim(stored.conversation_id) as conversation_id,
            btrim(stored.collection_id) as collection_id,
            stored.input_tokens,
            stored.output_tokens,
            stored.metadata,
            stored.occurred_at,
            stored.provider,
            stored.service_tier,
            stored.cache_read_tokens,
            stored.cache_write_tokens,
            stored.cache_write_long_tokens,
            stored.reasoning_tokens,
            count(*) as event_count
        from near as stored
        left join lateral token_tracking_raw.void_of(stored.tenant_id, stored.idempotency_key) as void
            on true
        where
            void.is_void is null
            and not exists (
                select from given
                where
                    given.tenant_id = stored.tenant_id
                    and given.idempotency_key = stored.idempotency_key
            )
            and not exists (
                select from unnest(p_own) as own (key) where own.key = stored.idempotency_key
            )
        group by
            btrim(stored.tenant_id), spaced_key, stored.tokens, stored.token_type, stored.operation,
            btrim(stored.model), btrim(stored.agent_id), btrim(stored.conversation_id),
            btrim(stored.collection_id), stored.input_tokens, stored.output_tokens, stored.metadata,
            stored.occurred_at, stored.provider, stored.service_tier, stored.cache_read_tokens,
            stored.cache_write_tokens, stored.cache_write_long_tokens, stored.reasoning_tokens
    ),

    -- one row per event and group that it is like
    alike as (
        select
            fresh.place,
            coalesce(btrim(others.spaced_key) = fresh.idempotency_key, false) as is_same_key,
            hashtextextended(jsonb_build_array(
                others.tenant_id, others.spaced_key, others.tokens, others.token_type, others.operation,
                others.model, others.agent_id, others.conversation_id, others.collection_id,
                others.input_tokens, others.output_tokens, others.metadata,
                extract(epoch from others.occurred_at), others.provider, others.service_tier,
                others.cache_read_tokens, others.cache_write_tokens, others.cache_write_long_tokens,
                others.reasoning_tokens
            )::text, 0) as likeness,
            others.event_count,
            num_nulls(
                nullif(fresh.tokens = others.tokens, true),
                nullif(fresh.token_type = others.token_type, true),
                nullif(fresh.operation = others.operation, true),
                nullif(fresh.model is not distinct from others.model, true),
                nullif(fresh.agent_id is not distinct from others.agent_id, true),
                nullif(fresh.conversation_id is not distinct from others.conversation_id, true),
                nullif(fresh.collection_id is not distinct from others.collection_id, true),
                nullif(fresh.input_tokens is not distinct from others.input_tokens, true),
                nullif(fresh.output_tokens is not distinct from others.output_tokens, true),
                nullif(fresh.metadata = others.metadata, true),
                nullif(fresh.provider is not distinct from others.provider, true),
                nullif(fresh.service_tier is not distinct from others.service_tier, true),
                nullif(fresh.cache_read_tokens is not distinct from others.cache_read_tokens, true),
                nullif(fresh.cache_write_tokens is not distinct from others.cache_write_tokens, true),
                nullif(fresh.cache_write_long_tokens is not distinct from others.cache_write_long_tokens, true),
                nullif(fresh.reasoning_tokens is not distinct from others.reasoning_tokens, true)
            ) as equal_fields
        from fresh
        inner join others
            on
                fresh.occurred_at = others.occurred_at
                and fresh.tenant_id = others.tenant_id
        where
            coalesce(fresh.input_tokens = others.input_tokens, true)
            and coalesce(fresh.output_tokens = others.output_tokens, true)
            and (
                fresh.tokens = others.tokens
                -- Only one of them has the other part.
                or fresh.input_tokens = others.input_tokens
                and (fresh.output_tokens is null) <> (others.output_tokens is null)
                or fresh.output_tokens = others.output_tokens
                and (fresh.input_tokens is null) <> (others.input_tokens is null)
            )
            -- 'llm' and 'query' are also the defaults of events without these labels.
            and (fresh.token_type = others.token_type or 'llm' in (fresh.token_type, others.token_type))
            and (fresh.operation = others.operation or 'query' in (fresh.operation, others.operation))
            and coalesce(fresh.model = others.model, true)
            and coalesce(fresh.agent_id = others.agent_id, true)
            and coalesce(fresh.conversation_id = others.conversation_id, true)
            and coalesce(fresh.collection_id = others.collection_id, true)
            and coalesce(fresh.provider = others.provider, true)
            and coalesce(fresh.service_tier = others.service_tier, true)
            and coalesce(fresh.cache_read_tokens = others.cache_read_tokens, true)
            and coalesce(fresh.cache_write_tokens = others.cache_write_tokens, true)
            and coalesce(fresh.cache_write_long_tokens = others.cache_write_long_tokens, true)
            and coalesce(fresh.reasoning_tokens = others.reasoning_tokens, true)
            and (
                fresh.metadata = others.metadata
                -- The members that both of them have are equal.
                or fresh.metadata || others.metadata = others.metadata || fresh.metadata
            )
    )

    select given.place, 'other_time', given.recorded_time, null::bigint, null::bigint
    from given
    where given.occurred_at <> given.recorded_time
    union all
    select given.place, 'voided', null, null, null
    from given
    cross join lateral token_tracking_raw.void_of(given.tenant_id, given.idempotency_key) as void
    where given.recorded_time is not null
    union all
    (
        select
            alike.place,
            case when alike.is_same_key then 'spaced_key' else 'alike' end,
            null,
            alike.likeness,
            alike.event_count
        from alike
        order by alike.place, alike.is_same_key desc, alike.equal_fields desc, alike.likeness
    )
$$;

-- For loads of files. Voids the events of an array that are recorded with the same
-- payload and time; in a trial only counts them. The times at the places in p_untimed
-- are not compared. The counts voided, voided_before, other (recorded with another
-- payload or time) and missing add up to the number of events.
create or replace function token_tracking_raw.void_recorded_usage(
    events json, p_untimed bigint[], p_reason text, p_is_trial boolean,
    out voided bigint, out voided_before bigint, out other bigint, out missing bigint
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    problem constant text := token_tracking_raw.text_problem('reason', p_reason, 1000);
begin
    perform token_tracking_raw.require_durable_commit();
    if problem is not null then
        raise invalid_parameter_value using message = problem;
    end if;
    with given as materialized (
        select
            (cleaned.event).tenant_id,
            (cleaned.event).idempotency_key,
            recorded.tenant_id is not null as is_recorded,
            coalesce(void.is_void, false) as is_void,
            coalesce(
                recorded.tenant_id is not null
                and compared.differing_fields = ''
                and (
                    (cleaned.event).occurred_at = recorded.occurred_at
                    or cleaned.place = any(p_untimed)
                ),
                false
            ) as is_same
        from token_tracking_raw.cleaned_events(events::jsonb, null) as cleaned
        left join token_tracking_raw.usage_events as recorded
            on
                (cleaned.event).tenant_id = recorded.tenant_id
                and (cleaned.event).idempotency_key = recorded.idempotency_key
        left join lateral token_tracking_raw.payload_comparison(
            cleaned.event, cleaned.element ->> 'token_type', cleaned.element ->> 'operation', recorded
        ) as compared
            on true
        left join lateral token_tracking_raw.void_of(
            (cleaned.event).tenant_id, (cleaned.event).idempotency_key
        ) as void
            on true
    ),

    written as (
        insert into token_tracking_raw.usage_voids (tenant_id, idempotency_key, reason, voided_by)
        select distinct given.tenant_id, given.idempotency_key, p_reason, session_user
        from given
        where given.is_same and not given.is_void and not p_is_trial
        order by given.tenant_id, given.idempotency_key
        on conflict do nothing
    )

    select
        count(*) filter (where given.is_same and not given.is_void),
        count(*) filter (where given.is_recorded and given.is_void),
        count(*) filter (where given.is_recorded and not given.is_void and not given.is_same),
        count(*) filter (where not given.is_recorded)
    into voided, voided_before, other, missing
    from given;
end
$$;
