{% macro create_build_tables() -%}
    {{ wait_briefly() }};
    alter table {{ build_table('build_state') }}
    add column if not exists rebuilt_as_of timestamptz,
    add column if not exists billing_timezone text,
    add column if not exists definition text,
    add column if not exists log_schema text,
    add column if not exists aliases text,
    add column if not exists read_to jsonb;
    create table if not exists {{ build_table('rollup_changes') }} (
        run_no bigint,
        usage_hour timestamptz,
        usage_date date,
        primary key (run_no, usage_hour, usage_date)
    );
    -- Up to which run a test of what builds changed was green, of rollups of these bases.
    create table if not exists {{ build_table('build_proofs') }} (
        test text primary key,
        basis text not null,
        run_no bigint not null
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
