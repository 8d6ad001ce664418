{% macro make_fresh_rows(query) %}
    {#- Once, for what comes and what goes are both found by it. The comparisons that follow are hash
        joins: what the planner guesses of a period's rows is often too few by far. The query stands in
        lines of its own, for it may end in a comment. -#}
    {% do run_query(
        "create temporary table fresh_rows on commit drop as select "
        ~ model.columns.keys() | join(", ") ~ " from (\n" ~ query ~ "\n) as counted;"
        ~ " set local enable_hashjoin = on;"
        ~ " set local enable_mergejoin = off; set local enable_nestloop = off"
    ) %}
{% endmacro %}
