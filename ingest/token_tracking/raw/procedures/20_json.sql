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

create or replace function token_tracking_raw.has_huge_number(value jsonb) returns boolean
language sql immutable
as $$
    select value @? '$.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))'
$$;

-- Replaces the backslash of each \u escape that jsonb cannot hold (NUL and unpaired
-- surrogates) by `mark`.
create or replace function token_tracking_raw.marked_json(value text, mark text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
    -- JSON text has no control characters, so they can stand for escaped backslashes
    -- and complete pairs.
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

-- Converts a value to jsonb, or says why PostgreSQL cannot hold it.
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
