{% macro is_of_reader(tenant) -%}
    {#- Of conditions that leak nothing by themselves PostgreSQL asks the cheapest first, also before a
        policy's, and whether ours was ever asked shows in plans and counters: so a condition of the
        reader's own would tell whether any row of any tenant meets it. A look-up by subscript costs
        nothing in the planner's eyes, comparing arrays more than `tokens > any('{5}')`: it is asked first.
        The second one finds the same rows by index. -#}
    ((
        select jsonb_object_agg(tenants.tenant_id, true)
        from unnest({{ tenants_of_reader() }}) as tenants (tenant_id)
    ))[{{ tenant }}] is not null
    and {{ tenant }} = any({{ tenants_of_reader() }})
{%- endmacro %}
