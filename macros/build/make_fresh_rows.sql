{% macro make_fresh_rows(query) %}
    {#- Once, for what comes and what goes are both found by it. The comparisons that follow are hash
        joins: what the planner guesses of a period's rows is often too few by far. The query stands in
        lines of its own, for it may end in a comment. Of how many groups there are the planner guesses
        too much: it would sort on disk what takes a megabyte to hash. -#}
    {% do run_query(
        "select set_config('work_mem', '32MB', true)"
        ~ " where pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('32MB');"
        ~ " create temporary table fresh_rows on commit drop as select "
        ~ model.columns.keys() | join(", ") ~ " from (\n" ~ query ~ "\n) as counted;"
        ~ " set local enable_hashjoin = on;"
        ~ " set local enable_mergejoin = off; set local enable_nestloop = off"
    ) %}
{% endmacro %}
