{% macro saved_state(relation) %}
    {% set rows = run_query(
        "select shape, docs, fingerprint, basis::text as basis, run_no, snapshot::text as snapshot,"
        ~ " coalesce(log_schema, '" ~ relation.schema ~ "') as log_schema,"
        ~ " coalesce(relation_oid = to_regclass('" ~ relation.include(database=false) ~ "'), false)"
        ~ " as is_same, coalesce(definition = " ~ definition_of(relation) ~ ", false) as looks_same"
        ~ " from " ~ build_table('build_state', relation.schema)
        ~ " where model = '" ~ relation.identifier ~ "'"
    ).rows %}
    {{ return(rows[0] if rows else none) }}
{% endmacro %}
