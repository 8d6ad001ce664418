-- Group roles with least privilege. `token-tracking schema apply --roles` fills in the
-- names and runs this after the schema's own files, in the same transaction. Running it
-- again changes nothing.

do $roles$
declare
    wanted text;
    place record;
    found oid;
    command text;
    -- Since PostgreSQL 16 a member can set the role only if the membership allows it.
    become constant text := case
        when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member'
    end;
begin
    foreach wanted in array array[
        {owner_text}, {writer_text}, {transformer_text}, {analyst_text}, {biller_text}, {tenant_reader_text}
    ] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception when duplicate_object or unique_violation then
                null; -- Roles belong to the cluster: an apply in another database was faster.
            end;
        end if;
        if exists (
            select from pg_roles
            where rolname = wanted and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)
        ) then
            raise object_not_in_prerequisite_state using message = format(
                'the role %I exists and can do more than its members may: choose another prefix', wanted
            );
        end if;
    end loop;

    -- To give objects to a role takes the right to set that role, except for
    -- superusers.
    foreach wanted in array array[{owner_text}, {transformer_text}] loop
        if not pg_has_role(current_user, wanted, 'usage') or not pg_has_role(current_user, wanted, become) then
            execute format('grant %I to current_user', wanted);
        end if;
    end loop;

    for place in
        select *
        from (values
            ('token_tracking_raw', {owner_text}, true),
            ({warehouse_text}, {transformer_text}, false),
            -- Here dbt stores the rows that fail a test.
            ({warehouse_text} || '_dbt_test__audit', {transformer_text}, false)
        ) as places (schema_name, owner_name, is_ours)
    loop
        found := (select nspowner from pg_namespace where nspname = place.schema_name);
        if found is null then
            execute format('create schema %I authorization %I', place.schema_name, place.owner_name);
            continue;
        end if;
        if found <> (select oid from pg_roles where rolname = place.owner_name) then
            execute format('alter schema %I owner to %I', place.schema_name, place.owner_name);
        end if;
        -- In the warehouse only objects of the schema's former owner: a view runs with
        -- the rights of its owner, and must not get more of them.
        for command in
            with objects as (
                select
                    -- A composite type is a relation as well.
                    case pg_class.relkind when 'c' then 'type' else 'table' end as kind,
                    pg_class.oid::regclass::text as name,
                    pg_class.relowner as owner,
                    pg_class.relnamespace as schema
                from pg_class
                where pg_class.relkind in ('r', 'p', 'v', 'm', 'c')
                union all
                select
                    'routine',
                    pg_proc.oid::regprocedure::text,
                    pg_proc.proowner,
                    pg_proc.pronamespace
                from pg_proc
                union all
                select
                    'type',
                    pg_type.oid::regtype::text,
                    pg_type.typowner,
                    pg_type.typnamespace
                from pg_type
                where pg_type.typtype in ('e', 'd')
            )

            select format('alter %s %s owner to %I', objects.kind, objects.name, place.owner_name)
            from objects
            where
                objects.schema = (select oid from pg_namespace where nspname = place.schema_name)
                and objects.owner <> (select oid from pg_roles where rolname = place.owner_name)
                and (place.is_ours or objects.owner = found)
        loop
            execute command;
        end loop;
    end loop;
end
$roles$;

revoke all on schema token_tracking_raw from public;
revoke all on all tables in schema token_tracking_raw from public;
revoke all on all routines in schema token_tracking_raw from public;
alter default privileges for role {owner} revoke execute on routines from public;

-- The four public procedures, one of them for two types of ids, and those of the Python
-- package: for payloads that cannot become an event, for owners that may be sent again,
-- and for loads of files.
grant usage on schema token_tracking_raw to {writer};
grant execute on function
    token_tracking_raw.track_token_usage_batch(json),
    token_tracking_raw.track_token_usage(text, bigint, text, text, text, jsonb, text, text, text),
    token_tracking_raw.track_token_usage(uuid, bigint, text, text, text, jsonb, text, uuid, uuid),
    token_tracking_raw.void_token_usage(text, text, text),
    token_tracking_raw.record_agent_owner(text, text, timestamptz),
    token_tracking_raw.record_agent_owner_once(text, text, timestamptz, uuid),
    token_tracking_raw.reject_usage_event(json, text),
    token_tracking_raw.has_usage_between(timestamptz, timestamptz, bigint),
    token_tracking_raw.recorded_usage(json, bigint, text[]),
    token_tracking_raw.void_recorded_usage(json, bigint[], text, boolean)
to {writer};

grant usage on schema token_tracking_raw to {transformer};
grant select on all tables in schema token_tracking_raw to {transformer};
alter default privileges for role {owner} in schema token_tracking_raw
grant select on tables to {transformer};

-- The prices, and when the first usage was, from which prices count.
grant usage on schema token_tracking_raw to {biller};
grant select on
    token_tracking_raw.model_prices,
    token_tracking_raw.model_aliases,
    token_tracking_raw.price_list_rules,
    token_tracking_raw.tenant_price_lists
to {biller};
grant execute on function
    token_tracking_raw.record_model_prices(json),
    token_tracking_raw.record_model_aliases(json),
    token_tracking_raw.record_price_list_rules(json),
    token_tracking_raw.record_tenant_price_lists(json),
    token_tracking_raw.first_usage_hour()
to {biller};

-- Each build grants the marts themselves.
grant usage on schema {warehouse} to {analyst}, {biller}, {tenant_reader};
grant select on token_tracking_raw.tenant_readers to {tenant_reader};
