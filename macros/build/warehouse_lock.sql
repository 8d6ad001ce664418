{% macro warehouse_lock(schema) -%}
    select pg_advisory_xact_lock(hashtext('token_tracking'), hashtext('{{ schema }}'))
{%- endmacro %}
