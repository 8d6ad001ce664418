{% macro make_fresh_rows(query) %}
    {#- Once, for what comes and what goes are both found by it. The comparisons that follow are hash
        joins: what the planner guesses of a period's rows is often too few by far. -#}
    {% do run_query(
        "create temporary table fresh_rows on commit drop as select "
        ~ model.columns.keys() | join(", ") ~ " from (" ~ query ~ ") as counted;"
        ~ " set local enable_hashjoin = on;"
        ~ " set local enable_mergejoin = off; set local enable_nestloop = off"
    ) %}
{% endmacro %}
