{% macro have_state(rollups) %}
    {% set tables = [build_table('build_proofs')] %}
    {% for rollup in rollups %}
        {% do tables.append(build_table('build_state', rollup.schema)) %}
    {% endfor %}
    {{ return(run_query(
        "select bool_and(to_regclass(name) is not null) from unnest(" ~ text_array(tables) ~ ") as name"
    ).columns[0][0]) }}
{% endmacro %}
