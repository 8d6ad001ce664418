{% macro tenants_of_current_user() -%}
    {#- A subquery, so that it runs once per query and not once per row. -#}
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
    {#- PostgreSQL evaluates leakproof conditions in the order of their cost, even before a policy's, and
        plans and counters show whether ours was evaluated at all: so a condition in the reader's query
        would reveal whether any row of any tenant meets it. The planner counts no cost for a look-up by
        subscript, and some for a comparison of arrays like `tokens > any('{5}')`: so the look-up comes
        first. The second condition finds the same rows by index. -#}
    ((
        select jsonb_object_agg(tenants.tenant_id, true)
        from unnest({{ tenants_of_current_user() }}) as tenants (tenant_id)
    ))[{{ tenant }}] is not null
    and {{ tenant }} = any({{ tenants_of_current_user() }})
{%- endmacro %}
