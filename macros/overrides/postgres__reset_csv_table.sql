{% macro postgres__reset_csv_table(model, full_refresh, old_relation, agate_table) -%}
    {{ return(postgres__create_csv_table(model, agate_table)) }}
{%- endmacro %}
