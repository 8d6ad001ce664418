{% macro lock_builds() -%}
    lock table {{ build_table('build_state') }} in share row exclusive mode
{%- endmacro %}
