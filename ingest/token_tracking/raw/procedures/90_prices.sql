-- The fields of the objects that the four procedures below record, in the order of their
-- checks. `part` says what a field is: of the key; of the value, which a further revision
-- corrects; or a remark, which is not compared. Python has the same table
-- (pricing/rules.py); a test compares the verdicts.
create or replace function token_tracking_raw.price_fields(subject text)
returns table (field text, kind text, part text, most integer, fallback jsonb)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select fields.field, fields.kind, fields.part, fields.most, fields.fallback
    from (
        values
        ('model_prices', 'price_list', 'text', 'key', 63, '"list"'::jsonb),
        ('model_prices', 'provider', 'label', 'key', 63, null),
        ('model_prices', 'model', 'text', 'key', 255, null),
        ('model_prices', 'token_kind', 'token kind', 'key', null, null),
        ('model_prices', 'service_tier', 'label', 'key', 63, '"standard"'),
        ('model_prices', 'context_over', 'tokens', 'key', null, '0'),
        ('model_prices', 'valid_from', 'hour', 'key', null, null),
        ('model_prices', 'currency', 'currency', 'value', null, '"USD"'),
        ('model_prices', 'amount', 'price or null', 'value', null, null),
        ('model_aliases', 'provider', 'label', 'key', 63, '"unknown"'),
        ('model_aliases', 'alias', 'text', 'key', 255, null),
        ('model_aliases', 'valid_from', 'hour', 'key', null, null),
        ('model_aliases', 'priced_provider', 'label or null', 'value', 63, null),
        ('model_aliases', 'priced_model', 'text or null', 'value', 255, null),
        ('price_list_rules', 'price_list', 'text', 'key', 63, null),
        ('price_list_rules', 'valid_from', 'hour', 'key', null, null),
        ('price_list_rules', 'base_list', 'text or null', 'value', 63, null),
        ('price_list_rules', 'factor', 'price or null', 'value', null, null),
        ('tenant_price_lists', 'tenant_id', 'text', 'key', 255, null),
        ('tenant_price_lists', 'valid_from', 'hour', 'key', null, null),
        ('tenant_price_lists', 'price_list', 'text or null', 'value', 63, null)
    ) as fields (subject, field, kind, part, most, fallback)
    where fields.subject = price_fields.subject
    union all
    select remarks.field, 'text or null', 'remark', remarks.most, 'null'
    from (values ('source', 255), ('note', 1000)) as remarks (field, most)
$$;

create or replace function token_tracking_raw.token_kinds() returns text[]
language sql immutable
as $$
    select '{input,cache_read,cache_write,cache_write_long,output,reasoning,unsplit}'::text[]
$$;

create or replace function token_tracking_raw.max_price() returns numeric
language sql immutable
as 'select 1000000000::numeric';

-- Returns the reason to refuse an object, or null: '<field>: <what was found>; <the
-- rule>'. A reason never contains a value.
create or replace function token_tracking_raw.price_problem(subject text, element jsonb)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
    found jsonb;
    kind text;
    name text;
    size integer;
    rule text;
    sum numeric;
    instant timestamptz;
    matched text[];
begin
    if jsonb_typeof(element) <> 'object' then
        return format('%s: %s; must be an object', subject, token_tracking_raw.json_kind(element));
    end if;
    select key into name
    from jsonb_object_keys(element) as key
    where key not in (select field from token_tracking_raw.price_fields(subject))
    limit 1;
    if name is not null then
        return format(
            '%s: unknown field; %s have only %s',
            case when name ~ '^[A-Za-z0-9_.-]{1,63}$' then name else 'a field' end,
            subject,
            (
                select string_agg(fields.field, ', ' order by fields.place)
                from token_tracking_raw.price_fields(subject)
                with ordinality as fields (field, kind, part, most, fallback, place)
            )
        );
    end if;
    for wanted in select * from token_tracking_raw.price_fields(subject) loop
        name := wanted.field;
        found := coalesce(element -> name, wanted.fallback);
        rule := case
            when wanted.most is not null then format('must be text of 1 to %s characters', wanted.most)
            when wanted.kind = 'token kind'
                then 'must be one of ' || array_to_string(token_tracking_raw.token_kinds(), ', ')
            when wanted.kind = 'tokens'
                then format('must be an integer from 0 to %s', token_tracking_raw.max_tokens())
            when wanted.kind = 'currency' then 'must be a code of ISO 4217, such as USD'
            when wanted.kind = 'hour' then 'must be a whole hour of UTC, as ISO 8601 text with a UTC offset'
            else format('must be a number from 0 to %s', token_tracking_raw.max_price())
        end;
        if wanted.kind like '% or null' then
            rule := rule || ', or null';
        end if;
        if found is null then
            return format('%s: missing; %s', name, rule);
        elsif found = 'null' then
            if wanted.kind not like '% or null' then
                return format('%s: null; %s', name, rule);
            end if;
            continue;
        end if;
        kind := jsonb_typeof(found);
        if (kind = 'number') <> (wanted.kind in ('tokens', 'price or null')) or kind not in ('number', 'string') then
            return format('%s: %s; %s', name, token_tracking_raw.json_kind(found), rule);
        end if;
        case
            when wanted.most is not null then
                size := length(found #>> '{}');
                if size not between 1 and wanted.most then
                    return format('%s: text of %s characters; %s', name, size, rule);
                elsif
                    wanted.kind like 'label%' and token_tracking_raw.cleaned_label(found #>> '{}') = ''
                then
                    return format('%s: white space; %s', name, rule);
                end if;
            when wanted.kind = 'token kind' then
                if found #>> '{}' <> all (token_tracking_raw.token_kinds()) then
                    return format('%s: another text; %s', name, rule);
                end if;
            when wanted.kind = 'currency' then
                if found #>> '{}' !~ '^[A-Z]{3}$' then
                    return format('%s: another text; %s', name, rule);
                end if;
            when wanted.kind = 'hour' then
                matched := regexp_match(
                    found #>> '{}',
                    '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?$'
                );
                if matched is null then
                    return format('%s: not a valid time; %s', name, rule);
                elsif matched[4] is null then
                    return format('%s: a time without UTC offset; %s', name, rule);
                end if;
                begin
                    instant := token_tracking_raw.instant_of(found #>> '{}');
                exception when data_exception then
                    return format('%s: not a valid date; %s', name, rule);
                end;
                if instant < token_tracking_raw.earliest_time() or instant >= '10000-01-01 00:00:00+00' then
                    return format('%s: a time out of range; must be from 2000-01-01 to 9999-12-31 UTC', name);
                elsif extract(epoch from instant) % 3600 <> 0 then
                    return format('%s: a time within an hour; %s', name, rule);
                end if;
            else
                sum := found::numeric;
                if sum < 0 then
                    return format('%s: a negative number; %s', name, rule);
                elsif wanted.kind = 'tokens' and sum <> trunc(sum) then
                    return format('%s: a number with a fraction; %s', name, rule);
                elsif
                    wanted.kind = 'tokens' and sum > token_tracking_raw.max_tokens()
                    or wanted.kind <> 'tokens' and sum > token_tracking_raw.max_price()
                then
                    return format('%s: a number above the limit; %s', name, rule);
                elsif min_scale(sum) > 18 then
                    return format('%s: more than 18 decimals; must have at most 18', name);
                end if;
        end case;
    end loop;
    -- Two names for one thing are given together.
    if subject = 'model_aliases' and (element ->> 'priced_provider' is null) <> (element ->> 'priced_model' is null) then
        return 'priced_model: given without priced_provider, or the other way round; must be both, or both null';
    elsif subject = 'price_list_rules' and (element ->> 'base_list' is null) <> (element ->> 'factor' is null) then
        return 'factor: given without base_list, or the other way round; must be both, or both null';
    elsif subject = 'price_list_rules' and element ->> 'base_list' = element ->> 'price_list' then
        return 'base_list: the list itself; must be another price list';
    end if;
    return null;
end
$$;

-- Records each object of an array as a row of a table of prices, with the next revision
-- where its key and instant has other values already. An object whose values are the
-- recorded ones is known, and nothing is recorded. One bad object never stops the others:
-- it is kept as a rejection. Objects count in their order.
create or replace function token_tracking_raw.record_price_rows(
    subject text, elements json,
    out recorded bigint, out known bigint, out rejected bigint, out problems jsonb
)
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    fields constant text[] := array(
        select fields.field
        from token_tracking_raw.price_fields(subject) with ordinality as fields (field, kind, part, most, fallback, place)
        order by fields.place
    );
    keys constant text := (
        select string_agg(format('stored.%1$I = given.%1$I', fields.field), ' and ')
        from token_tracking_raw.price_fields(subject) as fields
        where fields.part = 'key'
    );
    compared constant text := (
        select string_agg(format('stored.%1$I is not distinct from given.%1$I', fields.field), ' and ')
        from token_tracking_raw.price_fields(subject) as fields
        where fields.part = 'value'
    );
    -- Answers null where another transaction has taken the revision meanwhile.
    record_one constant text := format(
        'with given as (
            select (jsonb_populate_record(null::token_tracking_raw.%1$I, $1)).*
        ),
        latest as (
            select stored.revision, %2$s as is_same
            from token_tracking_raw.%1$I as stored
            cross join given
            where %3$s
            order by stored.revision desc
            limit 1
        ),
        written as (
            insert into token_tracking_raw.%1$I (%4$s, revision, recorded_by)
            select %5$s, coalesce((select latest.revision from latest), 0) + 1, session_user
            from given
            where not coalesce((select latest.is_same from latest), false)
            on conflict do nothing
            returning true
        )
        select case
            when (select latest.is_same from latest) then ''known''
            when exists (select from written) then ''recorded''
        end',
        subject, compared, keys,
        array_to_string(fields, ', '), 'given.' || array_to_string(fields, ', given.')
    );
    sent record;
    parsed jsonb;
    problem text;
    outcome text;
begin
    perform token_tracking_raw.require_durable_commit();
    recorded := 0;
    known := 0;
    rejected := 0;
    if elements is null or json_typeof(elements) <> 'array' then
        rejected := 1;
        problem := format(
            '%s: %s; must be an array of objects',
            subject, coalesce(nullif(json_typeof(elements), 'null'), 'nothing')
        );
        problems := jsonb_build_array(
            jsonb_build_object('index', null, 'kind', 'rejection', 'reason', problem)
        );
        perform token_tracking_raw.reject_usage_event(
            json_build_object(subject, elements), problem
        );
        return;
    end if;
    for sent in
        select array_elements.element, array_elements.place
        from json_array_elements(elements) with ordinality as array_elements (element, place)
        order by array_elements.place
    loop
        select attempt.parsed, attempt.problem into parsed, problem
        from token_tracking_raw.try_jsonb(sent.element) as attempt;
        problem := coalesce(problem, token_tracking_raw.price_problem(subject, parsed));
        if problem is not null then
            rejected := rejected + 1;
            problems := coalesce(problems, '[]') || jsonb_build_object(
                'index', sent.place - 1, 'kind', 'rejection', 'reason', problem
            );
            perform token_tracking_raw.reject_usage_event(
                json_build_object(subject, sent.element), problem
            );
            continue;
        end if;
        select jsonb_object_agg(
            fields.field,
            case
                when fields.kind like 'label%' and jsonb_typeof(given.value) = 'string'
                    then to_jsonb(token_tracking_raw.cleaned_label(given.value #>> '{}'))
                when fields.kind like 'price%' and jsonb_typeof(given.value) = 'number'
                    then to_jsonb(trim_scale(given.value::numeric))
                else given.value
            end
        )
        into parsed
        from token_tracking_raw.price_fields(subject) as fields
        cross join lateral (
            select coalesce(parsed -> fields.field, fields.fallback)
        ) as given (value);
        outcome := null;
        -- In each round one writer finishes, so no lock is needed, which any login could hold.
        for attempt in 1..1000 loop
            execute record_one into outcome using parsed;
            exit when outcome is not null;
        end loop;
        if outcome is null then
            raise lock_not_available using message = format('other writers keep recording the same row of %s', subject);
        end if;
        recorded := recorded + (outcome = 'recorded')::integer;
        known := known + (outcome = 'known')::integer;
    end loop;
end
$$;

-- Record prices: objects with the fields of model_prices. `amount` is per million tokens;
-- null ends a price, 0 is free. A price counts from `valid_from` until the next one of
-- the same list, provider, model, kind, tier and size; the same instant again is a
-- correction.
create or replace function token_tracking_raw.record_model_prices(
    prices json,
    out recorded bigint, out known bigint, out rejected bigint, out problems jsonb
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from token_tracking_raw.record_price_rows('model_prices', prices)
$$;

-- Records under which provider's and model's name a model is priced.
create or replace function token_tracking_raw.record_model_aliases(
    aliases json,
    out recorded bigint, out known bigint, out rejected bigint, out problems jsonb
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from token_tracking_raw.record_price_rows('model_aliases', aliases)
$$;

-- Records price lists that are a factor of another one. A price of the list's own goes
-- before.
create or replace function token_tracking_raw.record_price_list_rules(
    rules json,
    out recorded bigint, out known bigint, out rejected bigint, out problems jsonb
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from token_tracking_raw.record_price_rows('price_list_rules', rules)
$$;

-- Records the price lists that tenants pay by.
create or replace function token_tracking_raw.record_tenant_price_lists(
    assignments json,
    out recorded bigint, out known bigint, out rejected bigint, out problems jsonb
)
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    select * from token_tracking_raw.record_price_rows('tenant_price_lists', assignments)
$$;

-- Returns the hour of the first recorded event, from which a price without a date counts.
create or replace function token_tracking_raw.first_usage_hour()
returns timestamptz
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
    select date_trunc('hour', min(events.occurred_at), 'UTC')
    from token_tracking_raw.usage_events as events
$$;
