{% macro tenants_of_reader() -%}
    {#- A subquery of its own, so that it is asked once a query and not once a row. -#}
    array(
        select coalesce(readers.tenant_id, current_setting('token_tracking.tenant_id', true))
        from {{ source('token_tracking_raw', 'tenant_readers') }} as readers
        where readers.role_name = current_user
    )
{%- endmacro %}
