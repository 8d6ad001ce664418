{% macro is_new(ingest_xid, saved_snapshot) -%}
    {#- A literal, not a subquery: the planner needs its value to choose the BRIN index. -#}
    {{ ingest_xid }} >= {{ saved_snapshot.split(':')[0] | int }}
        and not pg_visible_in_snapshot({{ ingest_xid }}::text::xid8, '{{ saved_snapshot }}')
{%- endmacro %}
