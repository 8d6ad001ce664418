{% macro begin_build() %}
    {% do refuse_partial_input() %}
    {#- The snapshot is younger than the lock, so it shows what the build before has committed. -#}
    {% do begin_snapshot(lock_builds()) %}
    {#- Nor in what it says of a view. -#}
    {% do run_query("set local search_path = pg_catalog; set local quote_all_identifiers = off") %}
{% endmacro %}
