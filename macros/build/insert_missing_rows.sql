{% macro insert_missing_rows(relation, scope='true') %}
    {%- set columns = model.columns.keys() | join(', ') -%}
    insert into {{ relation }} ({{ columns }})
    select {{ columns }} from fresh_rows as fresh
    where
        -- What is left are fresh rows, too: if it is as many, none is missing, and no join is needed.
        (select count(*) from fresh_rows) > (select count(*) from {{ relation }} where {{ scope }})
        and not exists (
            select 1 from {{ relation }} as kept where {{ scope }} and {{ is_same_row() }}
        )
{% endmacro %}
