-- The limits and the list of fields are defined only here. The planner replaces calls
-- of these functions by their values.
create or replace function token_tracking_raw.max_tokens() returns bigint
language sql immutable
as 'select 1099511627776';

create or replace function token_tracking_raw.max_text() returns integer
language sql immutable
as 'select 255';

create or replace function token_tracking_raw.max_metadata_bytes() returns integer
language sql immutable
as 'select 16384';

create or replace function token_tracking_raw.earliest_time() returns timestamptz
language sql immutable
as $$ select timestamptz '2000-01-01 00:00:00+00' $$;

-- The fields of an event, in the order of the type usage_event. Add a new field at the
-- end.
create or replace function token_tracking_raw.event_fields() returns text[]
language sql immutable
as $$
    select '{tenant_id,idempotency_key,tokens,token_type,operation,model,agent_id,conversation_id,collection_id,input_tokens,output_tokens,metadata,occurred_at,provider,service_tier,cache_read_tokens,cache_write_tokens,cache_write_long_tokens,reasoning_tokens}'::text[]
$$;

-- Returns the reason to refuse an event, or null: '<field>: <what was found>; <the
-- rule>'. A reason never contains a value. Python gives the same reasons (rules.py); a
-- test compares them.
create or replace function token_tracking_raw.usage_event_problem(
    event jsonb, latest timestamptz
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    fields constant text[] := token_tracking_raw.event_fields();
    most_tokens constant bigint := token_tracking_raw.max_tokens();
    most_characters constant integer := token_tracking_raw.max_text();
    most_bytes constant integer := token_tracking_raw.max_metadata_bytes();
    field text;
    kind text;
    size integer;
    least integer;
    found text;
    has_number boolean := false;
    part numeric;
    numbers jsonb := '{}';
    total numeric := 0;
    parts numeric := 0;
    whole record;
    matched text[];
    instant timestamptz;
begin
    if jsonb_typeof(event) <> 'object' then
        return format('event: %s; must be an object', token_tracking_raw.json_kind(event));
    end if;
    select key into field from jsonb_object_keys(event) as key where key <> all (fields) limit 1;
    if field is not null then
        -- An arbitrary name could forge a line of a log.
        return format(
            '%s: unknown field; an event has only %s',
            case when field ~ '^[A-Za-z0-9_.-]{1,63}$' then field else 'a field' end,
            array_to_string(fields, ', ')
        );
    end if;

    foreach field in array '{tenant_id,idempotency_key,token_type,operation,model,agent_id,conversation_id,collection_id,provider,service_tier}'::text[] loop
        kind := jsonb_typeof(event -> field);
        size := length(event ->> field);
        if coalesce(kind, 'null') = 'null' then
            if field = 'tenant_id' then
                return format('tenant_id: missing; must be text of 1 to %s characters', most_characters);
            end if;
        elsif kind <> 'string' then
            return format('%s: %s; must be text', field, token_tracking_raw.json_kind(event -> field));
        else
            least := case when field in ('tenant_id', 'idempotency_key', 'agent_id') then 1 else 0 end;
            if size not between least and most_characters then
                return format(
                    '%s: text of %s characters; must be text of %s to %s characters',
                    field, size, least, most_characters
                );
            end if;
        end if;
    end loop;

    foreach field in array '{input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,cache_write_long_tokens,reasoning_tokens,tokens}'::text[] loop
        kind := jsonb_typeof(event -> field);
        if coalesce(kind, 'null') <> 'null' then
            if kind <> 'number' then
                found := token_tracking_raw.json_kind(event -> field);
            else
                part := (event -> field)::numeric;
                if part <> trunc(part) then
                    found := 'a number with a fraction';
                elsif part < 0 then
                    found := 'a negative number';
                elsif part > most_tokens then
                    found := 'a number above the limit';
                end if;
            end if;
            if found is not null then
                return format('%s: %s; must be an integer from 0 to %s', field, found, most_tokens);
            end if;
            numbers := numbers || jsonb_build_object(field, part);
        end if;
    end loop;
    has_number := numbers ?| '{tokens,input_tokens,output_tokens}';
    total := coalesce((numbers -> 'tokens')::numeric, 0);
    parts := coalesce((numbers -> 'input_tokens')::numeric, 0)
        + coalesce((numbers -> 'output_tokens')::numeric, 0);
    if total <> 0 and total < parts then
        return 'tokens: less than input_tokens + output_tokens; must be at least their sum, or 0 to use the sum';
    elsif parts > most_tokens then
        return format(
            'tokens: input_tokens + output_tokens above the limit; must be an integer from 0 to %s', most_tokens
        );
    end if;
    for whole in
        select *
        from (
            values
            ('input_tokens', '{cache_read_tokens,cache_write_tokens}'::text[]),
            ('cache_write_tokens', '{cache_write_long_tokens}'),
            ('output_tokens', '{reasoning_tokens}')
        ) as wholes (field, parts)
    loop
        if numbers ?| whole.parts then
            if not numbers ? whole.field then
                select name into field from unnest(whole.parts) as name where numbers ? name limit 1;
                return format('%s: given without %s; must be a part of it', field, whole.field);
            elsif (numbers -> whole.field)::numeric
                < (select sum((numbers -> name)::numeric) from unnest(whole.parts) as name) then
                return format(
                    '%s: less than %s; must be at least as many',
                    whole.field, array_to_string(whole.parts, ' + ')
                );
            end if;
        end if;
    end loop;

    kind := jsonb_typeof(event -> 'metadata');
    if coalesce(kind, 'null') <> 'null' then
        if kind <> 'object' then
            return format('metadata: %s; must be an object', token_tracking_raw.json_kind(event -> 'metadata'));
        end if;
        if octet_length((event -> 'metadata')::text) > most_bytes then
            return format(
                'metadata: more than %s bytes of JSON text; must be at most %s bytes', most_bytes, most_bytes
            );
        end if;
        -- The object itself is level 0, so a container at level 8 is the ninth.
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
            return 'occurred_at: not a valid time; must be ISO 8601 text with a UTC offset';
        elsif matched[4] is null then
            return 'occurred_at: a time without UTC offset; must be ISO 8601 text with a UTC offset';
        end if;
        begin
            instant := token_tracking_raw.instant_of(event ->> 'occurred_at');
        exception when data_exception then
            return 'occurred_at: not a valid date; must be ISO 8601 text with a UTC offset';
        end;
        if instant < token_tracking_raw.earliest_time() then
            return 'occurred_at: a time before 2000; must be from 2000-01-01 UTC to 5 minutes ahead';
        elsif instant > latest then
            return 'occurred_at: a time in the future; must be from 2000-01-01 UTC to 5 minutes ahead';
        end if;
    end if;

    -- Checked last, as in Python, where an otherwise valid call without tokens is a
    -- no-op.
    if not has_number then
        return format(
            'tokens: missing, and so are input_tokens and output_tokens; must be an integer from 0 to %s',
            most_tokens
        );
    end if;
    return null;
end
$$;

-- Returns the reason to refuse a required text, or null.
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
