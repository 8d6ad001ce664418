{% macro create_build_tables() -%}
    {{ wait_briefly() }};
    alter table {{ build_table('build_state') }}
    add column if not exists rebuilt_as_of timestamptz,
    add column if not exists billing_timezone text,
    add column if not exists definition text,
    add column if not exists log_schema text,
    add column if not exists aliases text,
    add column if not exists read_to jsonb,
    add column if not exists relation_file oid;
    create table if not exists {{ build_table('rollup_changes') }} (
        run_no bigint,
        usage_hour timestamptz,
        usage_date date,
        primary key (run_no, usage_hour, usage_date)
    );
    create table if not exists {{ build_table('build_proofs') }} (
        test text primary key,
        basis text not null,
        run_no bigint not null
    );
    comment on table {{ build_table('build_proofs') }} is
    'One row per test that was green: what it has compared, so that the next run goes on from there.';
    comment on column {{ build_table('build_proofs') }}.test is 'dbt''s name of the test.';
    comment on column {{ build_table('build_proofs') }}.basis is
    'The whole rebuilds of the compared rollups; after another one everything is compared.';
    comment on column {{ build_table('build_proofs') }}.run_no is
    'The run number up to which all changes were compared.';
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
