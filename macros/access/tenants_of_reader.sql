{% macro tenants_of_reader() -%}
    {#- A subquery of its own, so that it is asked once a query and not once a row. -#}
    array(
        select tenants.tenant_id
        from {{ source('token_tracking_raw', 'tenant_readers') }} as readers
        cross join lateral (
            select coalesce(readers.tenant_id, current_setting('token_tracking.tenant_id', true))
        ) as tenants (tenant_id)
        where readers.role_name = current_user and tenants.tenant_id is not null
    )
{%- endmacro %}
