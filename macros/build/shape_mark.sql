{% macro shape_mark() -%}
    shape {{ local_md5(get_table_columns_and_constraints() ~ config.get('indexes', [])
        ~ without_statistics(this.include(database=false))) }}
{%- endmacro %}
