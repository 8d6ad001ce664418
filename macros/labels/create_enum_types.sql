{% macro create_enum_types() %}
    {% for type, list in enum_types().items() %}
        {% set wanted = var(list) %}
        {% set existing = run_query(
            "select enumlabel from pg_enum"
            ~ " where enumtypid = to_regtype('" ~ enum_type(type) ~ "')::oid order by enumsortorder"
        ).columns[0].values() | list %}
        {% if not existing %}
            {% do run_query(
                "create type " ~ enum_type(type) ~ " as enum ('" ~ wanted | join("', '") ~ "')"
            ) %}
        {% else %}
            {% if wanted | select('in', existing) | list != existing %}
                {{ exceptions.raise_compiler_error(
                    "The list '" ~ list ~ "' was [" ~ existing | join(", ") ~ "] and is now ["
                    ~ wanted | join(", ") ~ "]: PostgreSQL cannot remove or reorder the labels of an"
                    ~ " enum type. To rename one: alter type " ~ enum_type(type) ~ " rename value 'old'"
                    ~ " to 'new', and change the list in the same way. To remove or reorder one: drop"
                    ~ " the schema '" ~ target.schema ~ "' (the raw events are elsewhere) and build."
                    ~ " Aliases of a label that is no more go from seeds/label_aliases.csv."
                ) }}
            {% endif %}
            {% for label in wanted if label not in existing %}
                {% set place = wanted.index(label) %}
                {% do run_query(
                    "alter type " ~ enum_type(type) ~ " add value '" ~ label ~ "'"
                    ~ (" after '" ~ wanted[place - 1] ~ "'" if place
                       else " before '" ~ existing[0] ~ "'")
                ) %}
            {% endfor %}
        {% endif %}
    {% endfor %}
{% endmacro %}
