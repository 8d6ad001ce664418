{% macro check_root_project() %}
    {#- Where this project is a package of another one, dbt takes materializations with the names `test`
        and `seed` from the root project alone. Without ours the checks would compare all history in each
        build, and the seed would collide with the table of aliases that every build needs. -#}
    {% set root = context.get(project_name, {}) %}
    {% set missing = [] %}
    {% for name in ['seed', 'test'] if 'materialization_' ~ name ~ '_postgres' not in root %}
        {% do missing.append("'" ~ name ~ "'") %}
    {% endfor %}
    {% if missing %}
        {{ exceptions.raise_compiler_error(
            "The project '" ~ project_name ~ "' must take the materializations " ~ missing | join(" and ")
            ~ " from its package token_tracking: copy the macro that docs/using.md of the package shows"
            ~ " under \"In a dbt project of your own\" into a file of its macros/."
        ) }}
    {% endif %}
{% endmacro %}
