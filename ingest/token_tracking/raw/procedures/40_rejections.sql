-- Returns the key of a refused payload: its hash if it names its call, so that it is
-- kept once however often it is sent; otherwise a random one.
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

-- Returns what is kept of a refused payload. NUL and unpaired surrogates become the
-- text of their escapes: one row that JSON operators cannot read would make every query
-- of the table fail. Above 64 KiB only the first fields are kept, those of an event
-- before others, and of a long field its beginning as text.
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
            entry.key <> all (token_tracking_raw.event_fields() || 'call_id'::text),
            entry.position
        limit 21
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

-- Keeps a payload that was refused before it became an event. Sent again with the same
-- key, it is kept once.
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
