-- one row: what the saved totals were built from
with

relations as (
    select to_regclass(names.name) as oid
    from unnest(%(relations)s::text[]) as names (name)
),

states as (
    select
        relations.oid,
        build_state.model,
        build_state.fingerprint,
        coalesce(build_state.usage_run, build_state.run_no) as run_no,
        build_state.snapshot,
        build_state.price_snapshot
    from relations
    left join build_state on relations.oid = build_state.relation_oid
),

base as (
    select
        states.run_no,
        states.snapshot
    from states
    where states.model = 'int_usage__hourly'
)

select
    (select base.snapshot::text from base) as snapshot,
    (select base.run_no from base) as run_number,
    (
        select states.price_snapshot::text
        from states
        where states.model = 'daily_token_cost'
    ) as price_snapshot,
    -- a relation that is missing, was recreated, or lags behind
    exists(
        select
        from states
        where
            states.model is null
            or states.run_no <> (select base.run_no from base)
    ) as is_behind,
    -- everything that can change totals, other than new raw rows and the project's
    -- files
    md5(concat_ws(
        ' ',
        (select control.system_identifier from pg_control_system() as control),
        (
            select pg_database.oid
            from pg_database
            where pg_database.datname = current_database()
        ),
        pg_relation_filenode(to_regclass('token_tracking_raw.usage_events')),
        pg_relation_filenode(to_regclass('token_tracking_raw.usage_voids')),
        pg_relation_filenode(to_regclass('token_tracking_raw.agent_owners')),
        pg_relation_filenode(to_regclass('token_tracking_raw.model_prices')),
        pg_relation_filenode(to_regclass('token_tracking_raw.model_aliases')),
        pg_relation_filenode(to_regclass('token_tracking_raw.price_list_rules')),
        pg_relation_filenode(to_regclass('token_tracking_raw.tenant_price_lists')),
        (select string_agg(states.fingerprint, ' ' order by states.model) from states),
        (
            select string_agg(concat(rules.ev_class, ':', rules.xmin), ' ' order by rules.oid)
            from pg_rewrite as rules
            where rules.ev_class in (select relations.oid from relations)
        ),
        (
            select string_agg(aliases::text, ' ' order by aliases.label_kind, aliases.alias)
            from label_aliases as aliases
        )
    )) as inputs
