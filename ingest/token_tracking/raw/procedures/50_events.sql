-- Converts ISO 8601 text to a time. Digits after microseconds are cut off: PostgreSQL
-- would round, which can move an event into the next day.
create or replace function token_tracking_raw.instant_of(iso text) returns timestamptz
language sql stable
as $$
    select case
        when length(substr(iso, 21, 7)) = 7 and translate(substr(iso, 21, 7), '0123456789', '') = ''
            then left(iso, 26) || ltrim(substr(iso, 27), '0123456789')
        else iso
    end::timestamptz
$$;

-- Returns a label in lower case, without leading and trailing white space.
create or replace function token_tracking_raw.cleaned_label(label text) returns text
language sql immutable
-- No SET clause: it would keep the planner from inlining the function.
as $$
    -- Before PostgreSQL 17, \v is the letter v; hence \x0b.
    select lower(btrim(label, e' \t\n\r\f\x0b') collate "C")
$$;

-- Returns true if a label is the recorded one. Up to version 3 of the schema,
-- PostgreSQL 15 and 16 removed leading and trailing letters v and kept vertical tabs.
-- Rows from that time can have that form of a label, also on another server that
-- restored a dump of them.
create or replace function token_tracking_raw.is_recorded_label(
    recorded text, label text, recorded_before_version_4 boolean
) returns boolean
language sql immutable
as $$
    select
        recorded = label -- the usual case, and the fastest test
        or recorded = token_tracking_raw.cleaned_label(label)
        or recorded_before_version_4 and recorded = lower(btrim(label, e' \t\n\r\fv') collate "C")
$$;

-- The type usage_event is an event with the column types of its table. This creates the
-- type, or adds the fields that an older version of it lacks.
do $type$
declare
    field text;
begin
    if to_regtype('token_tracking_raw.usage_event') is null then
        create type token_tracking_raw.usage_event as ();
    end if;
    foreach field in array token_tracking_raw.event_fields() loop
        if not exists (
            select from pg_attribute
            where
                pg_attribute.attrelid = 'token_tracking_raw.usage_event'::regclass
                and pg_attribute.attname = field
        ) then
            execute format(
                'alter type token_tracking_raw.usage_event add attribute %I %s', field,
                case
                    when field like '%tokens' then 'bigint'
                    when field = 'metadata' then 'jsonb'
                    when field = 'occurred_at' then 'timestamptz'
                    else 'text'
                end
            );
        end if;
    end loop;
    -- Row constructors assign its fields by position.
    if token_tracking_raw.event_fields() <> array(
        select pg_attribute.attname::text
        from pg_attribute
        where
            pg_attribute.attrelid = 'token_tracking_raw.usage_event'::regclass
            and not pg_attribute.attisdropped
        order by pg_attribute.attnum
    ) then
        raise 'the fields of the type usage_event are in another order than event_fields(): add new fields at its end';
    end if;
end
$type$;

-- Returns the cleaned event of each object of an array, with its zero-based place and
-- the object as sent. Skips objects without a tenant (those that were emptied).
-- `moment` is the time of events without one.
create or replace function token_tracking_raw.cleaned_events(elements jsonb, moment timestamptz)
returns table (place bigint, element jsonb, event token_tracking_raw.usage_event)
language sql stable
-- No SET clause: it would keep the planner from inlining the function. All names are
-- built in or qualified.
as $$
    select
        sent.position - 1,
        sent.element,
        row(
            sent.element ->> 'tenant_id',
            sent.element ->> 'idempotency_key',
            case
                when coalesce((sent.element ->> 'tokens')::numeric, 0) = 0
                    then coalesce((sent.element ->> 'input_tokens')::numeric, 0)
                        + coalesce((sent.element ->> 'output_tokens')::numeric, 0)
                else (sent.element ->> 'tokens')::numeric
            end::bigint,
            token_tracking_raw.cleaned_label(coalesce(sent.element ->> 'token_type', 'llm')),
            token_tracking_raw.cleaned_label(coalesce(sent.element ->> 'operation', 'query')),
            nullif(sent.element ->> 'model', ''),
            sent.element ->> 'agent_id',
            nullif(sent.element ->> 'conversation_id', ''),
            nullif(sent.element ->> 'collection_id', ''),
            (sent.element ->> 'input_tokens')::numeric::bigint,
            (sent.element ->> 'output_tokens')::numeric::bigint,
            coalesce(nullif(sent.element -> 'metadata', 'null'), '{}'),
            coalesce(token_tracking_raw.instant_of(sent.element ->> 'occurred_at'), moment),
            nullif(token_tracking_raw.cleaned_label(sent.element ->> 'provider'), ''),
            nullif(token_tracking_raw.cleaned_label(sent.element ->> 'service_tier'), ''),
            (sent.element ->> 'cache_read_tokens')::numeric::bigint,
            (sent.element ->> 'cache_write_tokens')::numeric::bigint,
            (sent.element ->> 'cache_write_long_tokens')::numeric::bigint,
            (sent.element ->> 'reasoning_tokens')::numeric::bigint
        )::token_tracking_raw.usage_event
    from jsonb_array_elements(elements) with ordinality as sent (element, position)
    where sent.element ->> 'tenant_id' is not null
$$;

-- Compares an event with the recorded event of its key. Returns the names of the fields
-- that differ ('' for the same payload) and the event's hash, by which each different
-- payload is kept once. Which fields are compared is defined only here. Labels are
-- compared as sent.
create or replace function token_tracking_raw.payload_comparison(
    event token_tracking_raw.usage_event, sent_token_type text, sent_operation text,
    recorded token_tracking_raw.usage_events
) returns table (differing_fields text, payload_hash bytea)
language sql stable
-- No SET clause, as above. Inlined, it computes the hash only where the caller uses it.
as $$
    select
        concat_ws(', ',
            case when event.tokens is distinct from recorded.tokens then 'tokens' end,
            case when event.input_tokens is distinct from recorded.input_tokens then 'input_tokens' end,
            case when event.output_tokens is distinct from recorded.output_tokens then 'output_tokens' end,
            case
                when not token_tracking_raw.is_recorded_label(
                    recorded.token_type, coalesce(sent_token_type, 'llm'), versions.is_before_4
                ) then 'token_type'
            end,
            case
                when not token_tracking_raw.is_recorded_label(
                    recorded.operation, coalesce(sent_operation, 'query'), versions.is_before_4
                ) then 'operation'
            end,
            case when event.model is distinct from recorded.model then 'model' end,
            case when event.agent_id is distinct from recorded.agent_id then 'agent_id' end,
            case when event.provider is distinct from recorded.provider then 'provider' end,
            case when event.service_tier is distinct from recorded.service_tier then 'service_tier' end,
            case
                when event.cache_read_tokens is distinct from recorded.cache_read_tokens
                    then 'cache_read_tokens'
            end,
            case
                when event.cache_write_tokens is distinct from recorded.cache_write_tokens
                    then 'cache_write_tokens'
            end,
            case
                when event.cache_write_long_tokens is distinct from recorded.cache_write_long_tokens
                    then 'cache_write_long_tokens'
            end,
            case
                when event.reasoning_tokens is distinct from recorded.reasoning_tokens
                    then 'reasoning_tokens'
            end
        ),
        -- The hash of an event without kinds is that of schema versions that had none.
        sha256(convert_to((
            jsonb_build_array(
                event.tokens, event.input_tokens, event.output_tokens, event.token_type,
                event.operation, event.model, event.agent_id
            )
            || case
                when num_nonnulls(
                    event.provider, event.service_tier, event.cache_read_tokens,
                    event.cache_write_tokens, event.cache_write_long_tokens, event.reasoning_tokens
                ) = 0 then '[]'
                else jsonb_build_array(
                    event.provider, event.service_tier, event.cache_read_tokens,
                    event.cache_write_tokens, event.cache_write_long_tokens, event.reasoning_tokens
                )
            end
        )::text, 'UTF8'))
    from (
        select coalesce(recorded.recorded_at <= (
            select schema_versions.applied_at
            from token_tracking_raw.schema_versions
            where schema_versions.version = 4
        ), false) as is_before_4
    ) as versions
$$;
