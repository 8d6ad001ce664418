{% macro insert_rollup(relation, query) %}
    {%- set columns = model.columns.keys() | join(', ') -%}
    insert into {{ relation }} ({{ columns }})
    select {{ columns }}
    from (
        {{ query }}
    ) as counted
{% endmacro %}
