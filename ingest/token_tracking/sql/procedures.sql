-- The unified procedures: the only way into the raw tables, from any language. They run with their
-- owner's rights and a fixed search path, so a caller needs nothing but the right to execute them. And
-- without jit: where a planner setting is off (enable_nestloop, enable_sort), PostgreSQL before 18 takes the
-- plan of a few rows for one that costs enough to be compiled, for half a second.

-- Returns why an event is refused, null where it is fine: '<field>: <what was found>; <the rule>'.
-- It never shows a value. Python's UsageEvent gives the same verdicts, which a test proves.
create or replace function token_tracking_raw.usage_event_problem(
    event jsonb, latest timestamptz
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    fields constant text[] := '{tenant_id,idempotency_key,tokens,token_type,operation,model,agent_id,conversation_id,collection_id,input_tokens,output_tokens,metadata,occurred_at}';
    field text;
    kind text;
    size integer;
    has_number boolean := false;
    part numeric;
    total numeric := 0;
    parts numeric := 0;
    matched text[];
    instant timestamptz;
begin
    if jsonb_typeof(event) <> 'object' then
        return format('event: %s; must be an object', token_tracking_raw.json_kind(event));
    end if;
    select key into field from jsonb_object_keys(event) as key where key <> all (fields) limit 1;
    if field is not null then
        -- A name that is none could forge a line of a log.
        return format(
            '%s: unknown field; an event has only %s',
            case when field ~ '^[A-Za-z0-9_.-]{1,63}$' then field else 'a field' end,
            array_to_string(fields, ', ')
        );
    end if;

    foreach field in array '{tenant_id,idempotency_key,token_type,operation,model,agent_id,conversation_id,collection_id}'::text[] loop
        kind := jsonb_typeof(event -> field);
        size := length(event ->> field);
        if coalesce(kind, 'null') = 'null' then
            if field = 'tenant_id' then
                return 'tenant_id: missing; must be text of 1 to 255 characters';
            end if;
        elsif kind <> 'string' then
            return format('%s: %s; must be text', field, token_tracking_raw.json_kind(event -> field));
        elsif size > 255 or size = 0 and field in ('tenant_id', 'idempotency_key', 'agent_id') then
            return format(
                '%s: text of %s characters; must be text of %s to 255 characters', field, size,
                case when field in ('tenant_id', 'idempotency_key', 'agent_id') then 1 else 0 end
            );
        end if;
    end loop;

    foreach field in array '{input_tokens,output_tokens,tokens}'::text[] loop
        kind := jsonb_typeof(event -> field);
        if coalesce(kind, 'null') <> 'null' then
            if kind <> 'number' then
                return format('%s: %s; must be an integer from 0 to 1099511627776', field, token_tracking_raw.json_kind(event -> field));
            end if;
            has_number := true;
            part := (event -> field)::numeric;
            if part <> trunc(part) then
                return format('%s: a number with a fraction; must be an integer from 0 to 1099511627776', field);
            elsif part < 0 then
                return format('%s: a negative number; must be an integer from 0 to 1099511627776', field);
            elsif part > 1099511627776 then
                return format('%s: a number above the limit; must be an integer from 0 to 1099511627776', field);
            elsif field = 'tokens' then
                total := part;
            else
                parts := parts + part;
            end if;
        end if;
    end loop;
    if total <> 0 and total < parts then
        return 'tokens: less than input_tokens + output_tokens; must be at least their sum, or 0 to mean it';
    elsif parts > 1099511627776 then
        return 'tokens: input_tokens + output_tokens above the limit; must be an integer from 0 to 1099511627776';
    end if;

    kind := jsonb_typeof(event -> 'metadata');
    if coalesce(kind, 'null') <> 'null' then
        if kind <> 'object' then
            return format('metadata: %s; must be an object', token_tracking_raw.json_kind(event -> 'metadata'));
        end if;
        if octet_length((event -> 'metadata')::text) > 16384 then
            return 'metadata: more than 16384 bytes of JSON text; must be at most 16384 bytes';
        end if;
        -- Level 0 is the object itself, so a container at level 8 is the ninth.
        if event -> 'metadata' @? 'strict $.**{8} ? (@.type() == "object" || @.type() == "array")' then
            return 'metadata: nested more than 8 deep; must be at most 8 deep';
        elsif token_tracking_raw.has_huge_number(event -> 'metadata') then
            return 'metadata: a number beyond 1.8e308; must be JSON values that any language can read';
        end if;
    end if;

    kind := jsonb_typeof(event -> 'occurred_at');
    if coalesce(kind, 'null') <> 'null' then
        if kind <> 'string' then
            return format('occurred_at: %s; must be ISO 8601 text with a UTC offset', token_tracking_raw.json_kind(event -> 'occurred_at'));
        end if;
        matched := regexp_match(
            event ->> 'occurred_at',
            '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?$'
        );
        if matched is null then
            return 'occurred_at: text that is no time; must be ISO 8601 text with a UTC offset';
        elsif matched[4] is null then
            return 'occurred_at: a time without UTC offset; must be ISO 8601 text with a UTC offset';
        end if;
        begin
            instant := token_tracking_raw.instant_of(event ->> 'occurred_at');
        exception when data_exception then
            return 'occurred_at: a day that no calendar has; must be ISO 8601 text with a UTC offset';
        end;
        if instant < '2000-01-01 00:00:00+00' then
            return 'occurred_at: a time before 2000; must be from 2000-01-01 UTC to 5 minutes ahead';
        elsif instant > latest then
            return 'occurred_at: a time in the future; must be from 2000-01-01 UTC to 5 minutes ahead';
        end if;
    end if;

    -- The last rule, as in Python, where such a call is good for all else and counts nothing.
    if not has_number then
        return 'tokens: missing, and so are input_tokens and output_tokens; must be an integer from 0 to 1099511627776';
    end if;
    return null;
end
$$;

create or replace function token_tracking_raw.has_huge_number(value jsonb) returns boolean
language sql immutable
as $$
    select value @? '$.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))'
$$;

create or replace function token_tracking_raw.json_kind(value jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case jsonb_typeof(value)
        when 'object' then 'an object'
        when 'array' then 'an array'
        when 'null' then 'null'
        else 'a ' || jsonb_typeof(value)
    end
$$;

-- Returns JSON text with `mark` in place of the backslash of each \u escape that jsonb cannot hold: NUL
-- and halves of surrogate pairs.
create or replace function token_tracking_raw.marked_json(value text, mark text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
    -- JSON text has no control characters: they stand for escaped backslashes and whole pairs.
    select case when strpos(value, '\u') = 0 then value else replace(replace(
        regexp_replace(
            regexp_replace(
                replace(value, '\\', chr(1)),
                '\\(u[dD][89abAB][0-9a-fA-F]{2})\\(u[dD][c-fC-F][0-9a-fA-F]{2})',
                chr(2) || '\1' || chr(2) || '\2',
                'g'
            ),
            '\\(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})', mark || '\1', 'g'
        ),
        chr(2), '\'), chr(1), '\\') end
$$;

-- Returns the value as jsonb, or why PostgreSQL cannot hold it.
create or replace function token_tracking_raw.try_jsonb(
    value json, out parsed jsonb, out problem text
)
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    found text;
begin
    parsed := value::jsonb;
exception when data_exception or program_limit_exceeded then
    begin
        select fields.key into found
        from jsonb_each(
            token_tracking_raw.marked_json(value::text, chr(65535))::jsonb
        ) as fields (key, content)
        where strpos(fields.key, chr(65535)) > 0 or strpos(fields.content::text, chr(65535)) > 0
        limit 1;
        problem := case when strpos(found, chr(65535)) > 0 then 'a field' else coalesce(found, 'event') end
            || ': text with NUL or half of a surrogate pair; must be text that PostgreSQL can hold';
    exception when others then
        problem := 'event: a value that PostgreSQL cannot hold; numbers have at most 131072 digits';
    end;
end
$$;

-- A payload that names its call is kept once, however often it is sent; any other one each time.
create or replace function token_tracking_raw.rejection_key(payload json) returns bytea
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    named boolean := false;
    readable constant json := token_tracking_raw.marked_json(payload::text, '?')::json;
begin
    if json_typeof(readable) = 'object' then
        named := coalesce(readable ->> 'idempotency_key', readable ->> 'call_id') is not null;
    end if;
    return sha256(case when named then convert_to(payload::text, 'UTF8') else uuid_send(gen_random_uuid()) end);
end
$$;

-- What is kept of a refused payload: all of it, but NUL and half surrogates as the text of their escape,
-- since one row that no JSON operator can read would fail every query of the table. Above 64 KiB it is
-- cut: the first fields, those that name the event before others, of each long one the beginning as text.
create or replace function token_tracking_raw.kept_payload(payload json) returns json
language sql immutable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
    with readable as materialized (
        select token_tracking_raw.marked_json(payload::text, '\\\\')::json as payload
    ),

    fields as (
        select
            entry.position,
            left(entry.key, 64) as name,
            case
                when octet_length(entry.value::text) <= 1000 then entry.value
                else to_json(left(entry.value::text, 1000) || ' ...')
            end as content
        from readable
        cross join lateral json_each(
            case
                when json_typeof(readable.payload) = 'object' then readable.payload
                else json_build_object('payload', readable.payload)
            end
        ) with ordinality as entry (key, value, position)
        order by
            entry.key <> all ('{tenant_id,idempotency_key,tokens,token_type,operation,model,agent_id,conversation_id,collection_id,input_tokens,output_tokens,metadata,occurred_at,call_id}'),
            entry.position
        limit 15
    ),

    abridged as (
        select * from fields
        union all
        select null, 'cut', to_json('more than 65536 bytes: the beginnings of its fields'::text)
    )

    select case
        when octet_length(payload::text) <= 65536 then (select readable.payload from readable)
        else (select json_object_agg(abridged.name, abridged.content order by abridged.position) from abridged)
    end
$$;

-- Keeps a payload that was refused before it could become an event. The same one with its key, sent
-- again, is kept once.
create or replace function token_tracking_raw.reject_usage_event(p_payload json, p_reason text)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform token_tracking_raw.require_durable_commit();
    insert into token_tracking_raw.usage_event_rejections (rejection_key, payload, reason)
    values (
        token_tracking_raw.rejection_key(p_payload),
        token_tracking_raw.kept_payload(p_payload),
        p_reason
    )
    on conflict do nothing;
end
$$;

create or replace function token_tracking_raw.require_durable_commit() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- In the body and not as a SET clause, which would be undone before the commit.
    if current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- A transaction that writes nothing waits for no standby. But the row that a repeated call finds
    -- may not have reached one: its own transaction's wait can have been cancelled. So each call
    -- writes something to the log, and its commit waits for all that came before.
    if current_setting('synchronous_standby_names', true) <> '' then
        perform pg_logical_emit_message(true, 'token_tracking', '');
    end if;
end
$$;

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

-- Records an array of usage events, each an object with the column names of usage_events.
-- One bad element never stops the others. recorded + duplicates + conflicts + rejected is the number
-- of elements; problems says which (zero-based), what (conflict or rejection) and why.
-- Who sets token_tracking.keeps_early to on keeps by itself what is ahead of this server's clock, and
-- sends it again: it is counted in rejected, its problem's kind is early, and nothing is kept here.
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
        -- Not events -> place, which fails at an escape that jsonb cannot hold.
        from json_array_elements(events) with ordinality as element (event, position)
        inner join jsonb_to_recordset(problems) as refused (index bigint, kind text, reason text)
            on element.position - 1 = refused.index
        where refused.kind = 'rejection'
        order by 1
        on conflict do nothing;

        -- Emptied, not left out: the others keep their places.
        select jsonb_agg(
            case when refused.index is null then element.event else '{}' end
            order by element.position
        )
        into elements
        from jsonb_array_elements(elements) with ordinality as element (event, position)
        left join jsonb_to_recordset(problems) as refused (index bigint)
            on element.position - 1 = refused.index;
    end if;

    insert into token_tracking_raw.usage_events (
        tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
        conversation_id, collection_id, input_tokens, output_tokens, metadata, occurred_at,
        recorded_at
    )
    select
        event.tenant_id, coalesce(event.idempotency_key, gen_random_uuid()::text), event.tokens,
        event.token_type, event.operation, event.model, event.agent_id, event.conversation_id,
        event.collection_id, event.input_tokens, event.output_tokens, event.metadata,
        coalesce(event.occurred_at, moment), moment
    from token_tracking_raw.usage_event_rows(elements) as event
    -- One order for all writers: two that share keys wait for each other and never both at once.
    order by event.tenant_id collate "C", event.idempotency_key collate "C", event.place
    on conflict (tenant_id, idempotency_key) do nothing;
    get diagnostics recorded = row_count;

    if recorded + rejected < total then
        -- A statement of its own sees what the insert waited for.
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

-- Records one event; true where it is recorded, now or before, and where tokens is null: then there is
-- nothing to record. Positional like its callers' old one.
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
    -- In the form that needs no closer look: see record_canonical_batch.
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

-- For ids of type uuid. Ids of both types in one call want a cast to text.
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

-- Returns why a text that has to be there is refused, null where it is fine.
create or replace function token_tracking_raw.text_problem(field text, value text, most integer)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format(
        '%s: %s; must be text of 1 to %s characters',
        field, coalesce('text of ' || length(value) || ' characters', 'missing'), most
    )
    where coalesce(length(value), 0) not between 1 and most
$$;

-- Takes an event out of all totals, whether it is there already or arrives later; a second void of
-- the same event changes nothing.
create or replace function token_tracking_raw.void_token_usage(
    p_tenant_id text, p_idempotency_key text, p_reason text
) returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    problem constant text := coalesce(
        token_tracking_raw.text_problem('tenant_id', p_tenant_id, 255),
        token_tracking_raw.text_problem('idempotency_key', p_idempotency_key, 255),
        token_tracking_raw.text_problem('reason', p_reason, 1000)
    );
begin
    perform token_tracking_raw.require_durable_commit();
    if problem is not null then
        perform token_tracking_raw.reject_usage_event(
            json_build_object(
                'void', json_build_object(
                    'tenant_id', p_tenant_id, 'idempotency_key', p_idempotency_key, 'reason', p_reason
                )
            ),
            problem
        );
        return false;
    end if;
    insert into token_tracking_raw.usage_voids (tenant_id, idempotency_key, reason, voided_by)
    values (p_tenant_id, p_idempotency_key, p_reason, session_user)
    on conflict do nothing;
    return true;
end
$$;

-- Says who owns an agent from an instant until the agent's next one; null ends the ownership. For an
-- instant that is known already it is a correction; the same owner again changes nothing. A call with an
-- id changes nothing when it is sent again, whatever was recorded since.
create or replace function token_tracking_raw.record_agent_owner_once(
    p_agent_id text, p_owner_tenant_id text, p_valid_from timestamptz, p_call_id uuid
) returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    problem constant text := coalesce(
        token_tracking_raw.text_problem('agent_id', p_agent_id, 255),
        case
            when p_owner_tenant_id is not null
                then token_tracking_raw.text_problem('owner_tenant_id', p_owner_tenant_id, 255)
        end,
        case
            when p_valid_from is null
                then 'valid_from: missing; must be from 2000-01-01 to 9999-12-31 UTC'
            when p_valid_from < '2000-01-01 00:00:00+00' or p_valid_from >= '10000-01-01 00:00:00+00'
                then 'valid_from: a time out of range; must be from 2000-01-01 to 9999-12-31 UTC'
        end
    );
    latest record;
begin
    perform token_tracking_raw.require_durable_commit();
    if problem is not null then
        perform token_tracking_raw.reject_usage_event(
            json_build_object(
                'agent_owner', json_build_object(
                    'agent_id', p_agent_id, 'owner_tenant_id', p_owner_tenant_id, 'valid_from', p_valid_from::text
                ),
                'call_id', p_call_id
            ),
            problem
        );
        return false;
    end if;
    if p_call_id is not null then
        insert into token_tracking_raw.agent_owner_calls (call_id) values (p_call_id) on conflict do nothing;
        if not found then
            return true;
        end if;
    end if;
    -- Revisions count up. Two writers of one instant meet at the next revision, which the slower one finds
    -- taken: no lock that any login could hold. In each round one of them ends.
    for attempt in 1..1000 loop
        select owners.revision, owners.owner_tenant_id
        into latest
        from token_tracking_raw.agent_owners as owners
        where owners.agent_id = p_agent_id and owners.valid_from = p_valid_from
        order by owners.revision desc
        limit 1;
        if latest.revision is not null and latest.owner_tenant_id is not distinct from p_owner_tenant_id then
            return true;
        end if;
        insert into token_tracking_raw.agent_owners (
            agent_id, valid_from, revision, owner_tenant_id, recorded_by
        )
        values (
            p_agent_id, p_valid_from, coalesce(latest.revision, 0) + 1, p_owner_tenant_id, session_user
        )
        on conflict (agent_id, valid_from, revision) do nothing;
        if found then
            return true;
        end if;
    end loop;
    raise lock_not_available using message = 'other writers record owners of this agent and instant all the time';
end
$$;

create or replace function token_tracking_raw.record_agent_owner(
    p_agent_id text, p_owner_tenant_id text, p_valid_from timestamptz default now()
) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    select token_tracking_raw.record_agent_owner_once(p_agent_id, p_owner_tenant_id, p_valid_from, null)
$$;

-- For loads of files. Says whether an event of a period was recorded by a transaction before p_before;
-- true, too, where too many younger ones are in the way to tell it quickly.
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

-- For loads of files. Returns what is recorded of an array of events, by their zero-based index:
-- other_time (its key is recorded with this time), voided (its key is), alike (its key is not recorded,
-- but before p_before there were events from which nothing tells it apart), spaced_key (the same, and
-- the keys differ in outer space alone). p_own are further keys of the array's file. An event may be alike
-- to several groups of equal events: each is named by its values and says how many events it has; the one
-- that has more in common comes first.
create or replace function token_tracking_raw.recorded_usage(
    events json, p_before bigint, p_own text[]
) returns table (index bigint, kind text, occurred_at timestamptz, likeness bigint, event_count bigint)
language sql stable
security definer
set search_path = pg_catalog, pg_temp
-- Look-ups of what is recorded, and no comparison of each event with each.
set enable_seqscan = off
set enable_nestloop = off
set jit = off
as $$
    with given as materialized (
        select event.*, event.position - 1 as place, stored.occurred_at as recorded_time
        -- What a load sends has been checked: no closer look, which takes long.
        from rows from (
            json_to_recordset(events) as (
                tenant_id text, idempotency_key text, tokens bigint, token_type text,
                operation text, model text, agent_id text, conversation_id text,
                collection_id text, input_tokens bigint, output_tokens bigint, metadata jsonb,
                occurred_at timestamptz
            )
        ) with ordinality as event (
            tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,
            conversation_id, collection_id, input_tokens, output_tokens, metadata, occurred_at, position
        )
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
            given.occurred_at
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

    -- one row per group of events that nothing tells apart
    others as materialized (
        select
            btrim(stored.tenant_id) as tenant_id,
            -- Only what has outer space may have a row's own key in another form.
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
            count(*) as event_count
        from near as stored
        left join lateral (
            select true as is_void
            from token_tracking_raw.usage_voids
            where
                usage_voids.tenant_id = stored.tenant_id
                and usage_voids.idempotency_key = stored.idempotency_key
            limit 1
        ) as void on true
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
            stored.occurred_at
    ),

    -- one row per event and group that it is alike to
    alike as (
        select
            fresh.place,
            coalesce(btrim(others.spaced_key) = fresh.idempotency_key, false) as is_same_key,
            hashtextextended(jsonb_build_array(
                others.tenant_id, others.spaced_key, others.tokens, others.token_type, others.operation,
                others.model, others.agent_id, others.conversation_id, others.collection_id,
                others.input_tokens, others.output_tokens, others.metadata,
                extract(epoch from others.occurred_at)
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
                nullif(fresh.metadata = others.metadata, true)
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
                -- Only one of them was told the other part.
                or fresh.input_tokens = others.input_tokens
                and (fresh.output_tokens is null) <> (others.output_tokens is null)
                or fresh.output_tokens = others.output_tokens
                and (fresh.input_tokens is null) <> (others.input_tokens is null)
            )
            -- The first of each is what stands for one that was not told.
            and (fresh.token_type = others.token_type or 'llm' in (fresh.token_type, others.token_type))
            and (fresh.operation = others.operation or 'query' in (fresh.operation, others.operation))
            and coalesce(fresh.model = others.model, true)
            and coalesce(fresh.agent_id = others.agent_id, true)
            and coalesce(fresh.conversation_id = others.conversation_id, true)
            and coalesce(fresh.collection_id = others.collection_id, true)
            and (
                fresh.metadata = others.metadata
                -- What both of them name is the same.
                or fresh.metadata || others.metadata = others.metadata || fresh.metadata
            )
    )

    select given.place, 'other_time', given.recorded_time, null::bigint, null::bigint
    from given
    where given.occurred_at <> given.recorded_time
    union all
    select given.place, 'voided', null, null, null
    from given
    cross join lateral (
        select
        from token_tracking_raw.usage_voids
        where
            usage_voids.tenant_id = given.tenant_id
            and usage_voids.idempotency_key = given.idempotency_key
        limit 1
    ) as void
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

-- For loads of files. Voids the events of an array that are recorded as the array says, or only counts
-- them. The times of those at the places p_untimed are not compared. The four counts add up to the number
-- of events: voided, voided_before, other (recorded in another way) and missing.
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
begin
    perform token_tracking_raw.require_durable_commit();
    if token_tracking_raw.text_problem('reason', p_reason, 1000) is not null then
        raise invalid_parameter_value using message = token_tracking_raw.text_problem('reason', p_reason, 1000);
    end if;
    with given as materialized (
        select
            event.tenant_id,
            event.idempotency_key,
            stored.tenant_id is not null as is_recorded,
            coalesce(void.is_void, false) as is_void,
            coalesce(stored.tenant_id is not null and (
                event.tokens, event.input_tokens, event.output_tokens, event.token_type,
                event.operation, event.model, event.agent_id
            ) is not distinct from (
                stored.tokens, stored.input_tokens, stored.output_tokens, stored.token_type,
                stored.operation, stored.model, stored.agent_id
            ) and (event.occurred_at = stored.occurred_at or event.place = any(p_untimed)), false) as is_same
        from token_tracking_raw.usage_event_rows(events::jsonb) as event
        left join token_tracking_raw.usage_events as stored
            on
                event.tenant_id = stored.tenant_id
                and event.idempotency_key = stored.idempotency_key
        left join lateral (
            select true as is_void
            from token_tracking_raw.usage_voids
            where
                usage_voids.tenant_id = event.tenant_id
                and usage_voids.idempotency_key = event.idempotency_key
            limit 1
        ) as void on true
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
