{% macro prepare_warehouse() %}
    {#- dbt makes the schema before it builds; a command that builds nothing needs nothing here. -#}
    {% if execute and run_query(
        "select to_regnamespace('\"" ~ target.schema ~ "\"')::text"
    ).columns[0][0] %}
        {% do check_billing_timezone() %}
        {% for list in enum_types().values() %}
            {% do check_label_list(list, var(list)) %}
        {% endfor %}
        {% if not is_prepared() %}
            {#- dbt runs hooks outside of a transaction, in which the lock would be gone at once.
                "if not exists" looks before it writes: what another build makes at the same moment is
                there at the next attempt. -#}
            {% call statement('begin_preparation', auto_begin=false) %}
                begin isolation level read committed;
                do $create$
                begin
                    loop
                        begin
                            {{ create_build_state() }}
                            exit;
                        exception when unique_violation or duplicate_table or duplicate_object then
                            null;
                        end;
                    end loop;
                end
                $create$;
                {{ lock_builds() }};
            {% endcall %}
            {% do create_enum_types() %}
            {% do run_query(create_build_tables()) %}
            {% do run_query('commit') %}
        {% endif %}
    {% endif %}
{% endmacro %}
