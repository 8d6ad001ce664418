{% macro rebuild_rollup(relation, query, is_new) %}
    {#- A new table gets its indexes when it is full. In one that is there only what differs is written:
        no reader waits, and no row is left dead for one that stays as it is. -#}
    {% if is_new %}
        {% call statement('main') %}
            {{ insert_rollup(relation, query) }}
        {% endcall %}
        {% do create_indexes(relation) %}
    {% else %}
        {% do make_fresh_rows(query) %}
        {% do run_query(delete_stale_rows(relation)) %}
        {% call statement('main') %}
            {{ insert_missing_rows(relation) }}
        {% endcall %}
    {% endif %}
{% endmacro %}
