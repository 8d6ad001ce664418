{% macro role_name(kind) -%}
    {{ env_var('TOKEN_TRACKING_ROLE_PREFIX', 'token_tracking_') }}{{ kind }}
{%- endmacro %}


{% macro grant_to_existing_roles(relation, grant_config) %}
    {#- dbt's apply_grants fails at a role that does not exist, and revokes what others granted. Two
        grants at once on one object would fail: callers hold the lock of builds, or that of proofs. -#}
    {% if grant_config %}
        {% call statement('grants') %}
            do $grants$
            declare
                missing record;
            begin
                {% for privilege, roles in grant_config.items() %}
                for missing in
                    select
                        rolname as name,
                        not has_schema_privilege(oid, '{{ relation.schema }}', 'usage') as schema_too
                    from pg_roles
                    where
                        rolname = any({{ text_array([roles] if roles is string else roles) }})
                        and not (
                            has_table_privilege(oid, '{{ relation.include(database=false) }}', '{{ privilege }}')
                            and has_schema_privilege(oid, '{{ relation.schema }}', 'usage')
                        )
                loop
                    execute format('grant {{ privilege }} on {{ relation.include(database=false) }} to %I', missing.name);
                    if missing.schema_too then
                        execute format('grant usage on schema "{{ relation.schema }}" to %I', missing.name);
                    end if;
                end loop;
                {% endfor %}
            end
            $grants$
        {% endcall %}
    {% endif %}
{% endmacro %}
