{% macro postgres__get_columns_in_relation(relation) -%}
    {#- dbt-postgres gives every enum the type USER-DEFINED, to which nothing can be cast
        (dbt-postgres #142, #150); the rest is its own query. -#}
    {% call statement('get_columns_in_relation', fetch_result=true) %}
        select
            column_name,
            case
                when data_type = 'USER-DEFINED'
                    then format('%I.%I', udt_schema, udt_name)
                else data_type
            end as data_type,
            character_maximum_length,
            numeric_precision,
            numeric_scale
        from {{ relation.information_schema('columns') }}
        where
            table_name = '{{ relation.identifier }}'
            {% if relation.schema %}
            and table_schema = '{{ relation.schema }}'
            {% endif %}
        order by ordinal_position
    {% endcall %}
    {{ return(sql_convert_columns_in_relation(load_result('get_columns_in_relation').table)) }}
{%- endmacro %}
