-- Records an array of usage events: objects whose fields are the columns of
-- usage_events. One bad element never stops the others. recorded + duplicates +
-- conflicts + rejected is the number of elements. problems has the zero-based index,
-- the kind (conflict or rejection) and the reason of each problem. A client that sets
-- token_tracking.keeps_early to on keeps events that are ahead of this server's clock
-- and sends them again later: they count as rejected with a problem of the kind early,
-- and are not kept here.
create or replace function token_tracking_raw.track_token_usage_batch(
    events json,
    out recorded bigint, out duplicates bigint, out conflicts bigint, out rejected bigint,
    out problems jsonb
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    moment constant timestamptz := clock_timestamp();
    latest constant timestamptz := moment + interval '5 minutes';
    elements jsonb;
    total bigint;
    unreadable jsonb;
    found jsonb;
    future_kind text;
begin
    perform token_tracking_raw.require_durable_commit();
    recorded := 0;
    duplicates := 0;
    conflicts := 0;
    rejected := 0;

    if events is null or json_typeof(events) <> 'array' then
        rejected := 1;
        problems := jsonb_build_array(jsonb_build_object(
            'index', null, 'kind', 'rejection', 'reason',
            format(
                'events: %s; must be an array of objects',
                coalesce(nullif(json_typeof(events), 'null'), 'nothing')
            )
        ));
        perform token_tracking_raw.reject_usage_event(events, problems -> 0 ->> 'reason');
        return;
    end if;

    select canonical.recorded, canonical.total, canonical.suspects
    into recorded, total, elements
    from token_tracking_raw.record_canonical_batch(events, moment, latest) as canonical;
    if recorded is not null then
        if elements is not null then
            select kept.conflicts, kept.problems
            into conflicts, problems
            from token_tracking_raw.keep_conflicts(
                elements,
                array(select (element.event -> 'position')::bigint - 1 from jsonb_array_elements(elements) as element (event)),
                moment
            ) as kept;
        end if;
        duplicates := total - recorded - conflicts;
        return;
    end if;

    begin
        elements := events::jsonb;
    exception when data_exception or program_limit_exceeded then
        select
            jsonb_agg(coalesce(attempt.parsed, '{}') order by element.position),
            jsonb_object_agg(element.position - 1, attempt.problem)
                filter (where attempt.problem is not null)
        into elements, unreadable
        from json_array_elements(events) with ordinality as element (event, position)
        cross join lateral token_tracking_raw.try_jsonb(element.event) as attempt;
    end;
    total := jsonb_array_length(elements);
    future_kind := case
        when current_setting('token_tracking.keeps_early', true) = 'on' then 'early' else 'rejection'
    end;

    select
        count(*),
        jsonb_agg(jsonb_build_object(
            'index', examined.place,
            'kind', case
                when examined.reason like 'occurred_at: a time in the future;%' then future_kind
                else 'rejection'
            end,
            'reason', examined.reason
        ))
    into rejected, problems
    from (
        select
            element.position - 1 as place,
            coalesce(
                unreadable ->> (element.position - 1)::text,
                token_tracking_raw.usage_event_problem(element.event, latest)
            ) as reason
        from jsonb_array_elements(elements) with ordinality as element (event, position)
    ) as examined
    where examined.reason is not null;

    if rejected > 0 then
        insert into token_tracking_raw.usage_event_rejections (rejection_key, payload, reason)
        select
            token_tracking_raw.rejection_key(element.event),
            token_tracking_raw.kept_payload(element.event),
            refused.reason
        -- Not events -> place, which fails on an escape that jsonb cannot hold.
        from json_array_elements(events) with ordinality as element (event, position)
        inner join jsonb_to_recordset(problems) as refused (index bigint, kind text, reason text)
            on element.position - 1 = refused.index
        where refused.kind = 'rejection'
        order by 1
        on conflict do nothing;

        -- Emptied instead of removed, so that the others keep their places.
        select jsonb_agg(
            case when refused.index is null then element.event else '{}' end
            order by element.position
        )
        into elements
        from jsonb_array_elements(elements) with ordinality as element (event, position)
        left join jsonb_to_recordset(problems) as refused (index bigint)
            on element.position - 1 = refused.index;
    end if;

    if elements @? '$[*] ? (!exists (@.idempotency_key) || @.idempotency_key == null)' then
        select jsonb_agg(
            case
                when sent.element ->> 'idempotency_key' is null
                    then sent.element || jsonb_build_object('idempotency_key', gen_random_uuid())
                else sent.element
            end
            order by sent.position
        )
        into elements
        from jsonb_array_elements(elements) with ordinality as sent (element, position);
    end if;

    insert into token_tracking_raw.usage_events (
        tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
        conversation_id, collection_id, input_tokens, output_tokens, metadata, occurred_at, provider,
        service_tier, cache_read_tokens, cache_write_tokens, cache_write_long_tokens,
        reasoning_tokens, recorded_at
    )
    select (cleaned.event).*, moment
    from token_tracking_raw.cleaned_events(elements, moment) as cleaned
    -- All writers use this order, so two that share keys cannot deadlock.
    order by
        (cleaned.event).tenant_id collate "C",
        (cleaned.event).idempotency_key collate "C",
        cleaned.place
    on conflict (tenant_id, idempotency_key) do nothing;
    get diagnostics recorded = row_count;

    if recorded + rejected < total then
        -- A separate statement, since it sees the rows that the insert waited for.
        select kept.conflicts, kept.problems
        into conflicts, found
        from token_tracking_raw.keep_conflicts(elements, null, moment) as kept;
        problems := case when found is null then problems else coalesce(problems, '[]') || found end;
        duplicates := total - recorded - rejected - conflicts;
    end if;
end
$$;

comment on function token_tracking_raw.track_token_usage_batch(json) is
'Records a JSON array of usage events; one bad element never stops the others.';
