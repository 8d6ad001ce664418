-- What tokens cost, from when on. Prices begin on whole hours of UTC, as the hours of the totals do: so
-- an hour's tokens have one price, and totals are rated instead of events.

create table token_tracking_raw.model_prices (
    price_list text collate "C" not null,
    provider text collate "C" not null,
    model text collate "C" not null,
    token_kind text collate "C" not null,
    service_tier text collate "C" not null,
    context_over bigint not null,
    valid_from timestamptz not null,
    revision integer not null,
    currency text collate "C" not null,
    amount numeric,
    source text collate "C",
    note text collate "C",
    recorded_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (
        price_list, provider, model, token_kind, service_tier, context_over, valid_from, revision
    ),
    constraint valid_from_is_a_whole_hour check (extract(epoch from valid_from) % 3600 = 0),
    constraint amount_is_a_price check (amount >= 0 and amount < 'infinity'),
    constraint revision_is_positive check (revision > 0)
);

comment on table token_tracking_raw.model_prices is
'One row per price and revision: what a million tokens of a kind cost from an instant until the next one of the same price list, provider, model, kind, tier and size of request. The highest revision of an instant wins.';
comment on column token_tracking_raw.model_prices.token_kind is
'input (not cached), cache_read, cache_write, cache_write_long, output (visible), reasoning, or unsplit.';
comment on column token_tracking_raw.model_prices.context_over is
'The price of requests with more input tokens than these; of several the highest counts.';
comment on column token_tracking_raw.model_prices.valid_from is 'First instant of this price, a whole hour of UTC.';
comment on column token_tracking_raw.model_prices.revision is
'Counts corrections of the same price and instant, from 1.';
comment on column token_tracking_raw.model_prices.currency is 'ISO 4217.';
comment on column token_tracking_raw.model_prices.amount is
'Per million tokens. 0 is free; null: no price from here on.';

create table token_tracking_raw.model_aliases (
    provider text collate "C" not null,
    alias text collate "C" not null,
    valid_from timestamptz not null,
    revision integer not null,
    priced_provider text collate "C",
    priced_model text collate "C",
    source text collate "C",
    note text collate "C",
    recorded_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (provider, alias, valid_from, revision),
    constraint valid_from_is_a_whole_hour check (extract(epoch from valid_from) % 3600 = 0),
    constraint revision_is_positive check (revision > 0)
);

comment on table token_tracking_raw.model_aliases is
'One row per provider, name of a model, instant and revision: under which name its tokens are priced from that instant until the next one. The highest revision of an instant wins.';
comment on column token_tracking_raw.model_aliases.provider is 'As events have it; unknown where they have none.';
comment on column token_tracking_raw.model_aliases.alias is 'The model''s name in events.';
comment on column token_tracking_raw.model_aliases.priced_model is 'Null: priced under its own name from here on.';

create table token_tracking_raw.price_list_rules (
    price_list text collate "C" not null,
    valid_from timestamptz not null,
    revision integer not null,
    base_list text collate "C",
    factor numeric,
    source text collate "C",
    note text collate "C",
    recorded_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (price_list, valid_from, revision),
    constraint valid_from_is_a_whole_hour check (extract(epoch from valid_from) % 3600 = 0),
    constraint factor_is_a_price check (factor >= 0 and factor < 'infinity'),
    constraint is_whole check ((base_list is null) = (factor is null)),
    constraint revision_is_positive check (revision > 0)
);

comment on table token_tracking_raw.price_list_rules is
'One row per price list, instant and revision: from that instant until the next one, what the list has no price of its own for costs a factor of the price in another list. The highest revision of an instant wins.';
comment on column token_tracking_raw.price_list_rules.base_list is 'Null: the list''s own prices alone from here on.';

create table token_tracking_raw.tenant_price_lists (
    tenant_id text collate "C" not null,
    valid_from timestamptz not null,
    revision integer not null,
    price_list text collate "C",
    source text collate "C",
    note text collate "C",
    recorded_by text not null,
    recorded_at timestamptz not null default now(),
    ingest_xid bigint not null default (pg_current_xact_id()::text::bigint),
    primary key (tenant_id, valid_from, revision),
    constraint valid_from_is_a_whole_hour check (extract(epoch from valid_from) % 3600 = 0),
    constraint revision_is_positive check (revision > 0)
);

comment on table token_tracking_raw.tenant_price_lists is
'One row per tenant, instant and revision: the price list that the tenant pays by, from that instant until its next one. The highest revision of an instant wins.';
comment on column token_tracking_raw.tenant_price_lists.price_list is 'Null: the list named list from here on, as without any row.';

do $triggers$
declare
    raw_table text;
begin
    foreach raw_table in array array[
        'model_prices', 'model_aliases', 'price_list_rules', 'tenant_price_lists'
    ] loop
        execute format(
            'create trigger stamp_row before insert on token_tracking_raw.%I for each row'
            ' when (new.ingest_xid is distinct from pg_current_xact_id()::text::bigint)'
            ' execute function token_tracking_raw.stamp_row()', raw_table
        );
        execute format(
            'alter table token_tracking_raw.%I enable always trigger stamp_row', raw_table
        );
        execute format(
            'create trigger keep_stamp before update on token_tracking_raw.%I for each row'
            ' execute function token_tracking_raw.stamp_row()', raw_table
        );
        execute format(
            'alter table token_tracking_raw.%I enable replica trigger keep_stamp', raw_table
        );
    end loop;
end
$triggers$;
