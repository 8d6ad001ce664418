{% macro role_name(kind) -%}
    {{ env_var('TOKEN_TRACKING_ROLE_PREFIX', 'token_tracking_') }}{{ kind }}
{%- endmacro %}


{% macro postgres__apply_grants(relation, grant_config, should_revoke=true) %}
    {#- dbt's own fails at a role that does not exist, and takes away what others granted. Two grants
        at once on one thing would fail: callers hold the lock of builds, or that of proofs. -#}
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
