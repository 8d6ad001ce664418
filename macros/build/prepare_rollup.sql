{% macro prepare_rollup(relation, query, fingerprint) %}
    {#- Leaves the rollup's table in its shape; returns the state to go on from, none for a whole
        rebuild, and whether the table is new. A restored one is not, for others' views may stand on
        it. -#}
    {% set saved = saved_state(relation) %}
    {% set is_same = saved is not none and saved['is_same'] %}
    {% set fits = saved is not none and saved['shape'] == shape_mark()
        and (is_same or saved['looks_same']) %}
    {% if not fits %}
        {#- Our own views on top come back when their turn comes; anybody else's stops the build. -#}
        {% call statement('create_rollup') %}
            {{ wait_briefly() }};
            {% for node in graph.nodes.values()
                if model.unique_id in node.depends_on.nodes and node.config.materialized == 'view' %}
            drop view if exists "{{ node.schema }}"."{{ node.alias }}";
            {% endfor %}
            drop table if exists {{ relation }};
            create table {{ relation }} {{ get_table_columns_and_constraints() }};
            {{ without_statistics(relation) }}
        {% endcall %}
    {% endif %}
    {% do run_query(identified_rows(relation)) %}
    {% if not fits or not is_same or saved['docs'] != docs_mark() %}
        {% do persist_docs(relation, model) %}
    {% endif %}
    {#- A snapshot of the future is of a counter that was set back since. -#}
    {% set goes_on = fits and is_same and saved['is_of_past'] and saved['fingerprint'] == fingerprint
        and not should_full_refresh() %}
    {% if not goes_on %}
        {% do get_assert_columns_equivalent(query) %}
    {% endif %}
    {{ return({'saved': saved if goes_on else none, 'is_new': not fits}) }}
{% endmacro %}
