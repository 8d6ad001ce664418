{% macro saved_state(relation) %}
    {% set rows = run_query(
        "select shape, docs, fingerprint, basis::text as basis, run_no, snapshot::text as snapshot,"
        ~ " coalesce(log_schema, '" ~ relation.schema ~ "') as log_schema,"
        ~ " read_to::text as read_to,"
        ~ " coalesce(pg_snapshot_xmax(snapshot) <= pg_snapshot_xmax(pg_current_snapshot()), true)"
        ~ " as is_of_past,"
        ~ " coalesce(relation_oid = to_regclass('" ~ relation.include(database=false) ~ "')"
        ~ " and coalesce(relation_file = pg_relation_filenode(relation_oid), relation_file is null), false)"
        ~ " as is_same, coalesce(definition = " ~ definition_of(relation) ~ ", false) as looks_same"
        ~ " from " ~ build_table('build_state', relation.schema)
        ~ " where model = '" ~ relation.identifier ~ "'"
    ).rows %}
    {{ return(rows[0] if rows else none) }}
{% endmacro %}
