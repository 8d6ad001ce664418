{% macro delete_stale_rows(relation, scope='true') %}
    delete from {{ relation }} as kept
    where {{ scope }} and not exists (select 1 from fresh_rows as fresh where {{ is_same_row() }})
{% endmacro %}
