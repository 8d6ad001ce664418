{% macro create_build_tables() -%}
    create table if not exists {{ build_table('build_state') }} (
        model text primary key,
        -- The relation that this is the state of: one dropped and made anew is empty.
        relation_oid oid not null,
        shape text,
        docs text not null,
        fingerprint text not null,
        -- Renewed by each whole rebuild; part of the fingerprint of what reads the relation.
        basis uuid not null,
        run_no bigint,
        -- Where rollup_changes counts these runs: the schema of the base, another one's under --defer.
        log_schema text,
        snapshot pg_snapshot,
        as_of timestamptz,
        -- as_of of the newest whole rebuild, of which the log of changes says nothing
        rebuilt_as_of timestamptz,
        billing_timezone text,
        -- aliases_digest() of the aliases that labels were read with
        aliases text,
        -- definition_of() the relation, by which one that was restored is known
        definition text
    );
    alter table {{ build_table('build_state') }}
    add column if not exists rebuilt_as_of timestamptz,
    add column if not exists billing_timezone text,
    add column if not exists definition text,
    add column if not exists log_schema text,
    add column if not exists aliases text;
    create table if not exists {{ build_table('rollup_changes') }} (
        run_no bigint,
        usage_hour timestamptz,
        usage_date date,
        primary key (run_no, usage_hour, usage_date)
    );
    {% if not invocation_args_dict.get('defer') -%}
    -- The seed fills it; without, `dbt run` could not come first.
    create table if not exists {{ build_table('label_aliases') }} (
        label_kind text collate "C",
        alias text collate "C",
        label text collate "C",
        primary key (label_kind, alias)
    );
    {%- endif %}
{%- endmacro %}
