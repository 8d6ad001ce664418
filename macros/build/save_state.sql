{% macro save_state(relation, state) %}
    {#- The values of state are SQL expressions. -#}
    {% set state = dict(
        state,
        relation_oid="'" ~ relation.include(database=false) ~ "'::regclass",
        relation_file="pg_relation_filenode('" ~ relation.include(database=false) ~ "'::regclass)",
        docs="'" ~ docs_mark() ~ "'",
        definition=definition_of(relation),
    ) %}
    {% set names = state.keys() | list %}
    {% do run_query(
        "insert into " ~ build_table('build_state', relation.schema)
        ~ " (model, " ~ names | join(", ") ~ ") values ('"
        ~ relation.identifier ~ "', " ~ state.values() | join(", ") ~ ")"
        ~ " on conflict (model) do update set (" ~ names | join(", ")
        ~ ") = (excluded." ~ names | join(", excluded.") ~ ")"
    ) %}
{% endmacro %}
