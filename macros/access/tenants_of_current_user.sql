{% macro tenants_of_current_user() -%}
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


{% macro is_tenant_of_current_user(tenant) -%}
    {#- Of conditions that leak nothing by themselves PostgreSQL asks the cheapest first, also before a
        policy's, and whether ours was ever asked shows in plans and counters: so a condition of the
        reader's own would tell whether any row of any tenant meets it. A look-up by subscript costs
        nothing in the planner's eyes, comparing arrays more than `tokens > any('{5}')`: it is asked first.
        The second one finds the same rows by index. -#}
    ((
        select jsonb_object_agg(tenants.tenant_id, true)
        from unnest({{ tenants_of_current_user() }}) as tenants (tenant_id)
    ))[{{ tenant }}] is not null
    and {{ tenant }} = any({{ tenants_of_current_user() }})
{%- endmacro %}
