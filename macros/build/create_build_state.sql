{% macro create_build_state() -%}
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
        definition text,
        -- read_to() the end of each raw table
        read_to jsonb,
        -- The relation's file, none of a view: a table that was truncated since, or written anew, has
        -- another one.
        relation_file oid
    );
{%- endmacro %}
