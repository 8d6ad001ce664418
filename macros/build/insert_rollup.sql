{% macro insert_rollup(relation, query, condition='true') %}
    {%- set columns = model.columns.keys() | join(', ') -%}
    insert into {{ relation }} ({{ columns }})
    select {{ columns }}
    from (
        {{ query }}
    ) as fresh
    where {{ condition }}
{% endmacro %}
