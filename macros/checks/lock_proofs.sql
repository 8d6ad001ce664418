{% macro lock_proofs() -%}
    lock table {{ build_table('build_proofs') }} in share row exclusive mode
{%- endmacro %}
