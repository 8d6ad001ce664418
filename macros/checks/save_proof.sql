{% macro save_proof(proved) %}
    {% set proofs = build_table('build_proofs') %}
    {% do run_query(
        "insert into " ~ proofs ~ " as saved (test, basis, run_no) values ('" ~ model.unique_id ~ "', '"
        ~ proved['basis'] ~ "', " ~ proved['run_no'] ~ ") on conflict (test) do update"
        ~ " set (basis, run_no) = (excluded.basis, excluded.run_no)"
        ~ " where saved.basis <> excluded.basis or saved.run_no < excluded.run_no"
    ) %}
{% endmacro %}
