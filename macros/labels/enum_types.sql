{% macro enum_types() %}
    {#- Each enum type, and the dbt variable that lists its labels. -#}
    {{ return({
        'token_type': 'token_types',
        'operation_type': 'operations',
        'attribution_rule': 'attribution_rules',
    }) }}
{% endmacro %}


{% macro enum_type(name) -%}
    "{{ target.schema }}".{{ name }}
{%- endmacro %}


{% macro typed_label(candidates, type, labels) -%}
    {%- set listed = "('" ~ var(labels) | join("', '") ~ "')" -%}
    case
        {%- for candidate in candidates %}
        when {{ candidate }} in {{ listed }} then {{ candidate }}::{{ enum_type(type) }}
        {%- endfor %}
        else 'unknown'::{{ enum_type(type) }}
    end
{%- endmacro %}


{% macro cast_to_own_enums(query) %}
    {#- A deferred relation has the enum types of its own schema, which our contract rejects. -#}
    {% if not invocation_args_dict.get('defer') %}
        {{ return(query) }}
    {% endif %}
    {% set columns = [] %}
    {% for column in model.columns.values() %}
        {% set cast = '::text::' ~ column.data_type if '.' in column.data_type else '' %}
        {% do columns.append(column.name ~ cast ~ ' as ' ~ column.name) %}
    {% endfor %}
    {{ return("select " ~ columns | join(", ") ~ " from (\n" ~ query ~ "\n) as deferred") }}
{% endmacro %}


{% macro check_label_list(list, labels) %}
    {% set ns = namespace(bad=[]) %}
    {% for label in labels if not modules.re.fullmatch('[a-z][a-z0-9_]{0,62}', label | string) %}
        {% do ns.bad.append(label) %}
    {% endfor %}
    {% if ns.bad or labels | unique | list | length != labels | length %}
        {{ exceptions.raise_compiler_error(
            "The list '" ~ list ~ "' is [" ~ labels | join(", ") ~ "]: labels are lower case letters,"
            ~ " digits and _, at most 63 characters, each once."
        ) }}
    {% endif %}
    {% if list != 'attribution_rules' and 'unknown' not in labels %}
        {{ exceptions.raise_compiler_error(
            "The list '" ~ list ~ "' is [" ~ labels | join(", ") ~ "]: it needs the label 'unknown',"
            ~ " under which every unforeseen one is counted."
        ) }}
    {% endif %}
{% endmacro %}


{% macro create_enum_types() %}
    {% for type, list in enum_types().items() %}
        {% set labels = var(list) %}
        {% set query %}
            select enumlabel from pg_enum
            where enumtypid = to_regtype('{{ enum_type(type) }}')::oid
            order by enumsortorder
        {% endset %}
        {% set existing = run_query(query).columns[0].values() | list %}
        {% if not existing %}
            {% do run_query(
                "create type " ~ enum_type(type) ~ " as enum ('" ~ labels | join("', '") ~ "')"
            ) %}
        {% else %}
            {% if labels | select('in', existing) | list != existing %}
                {{ exceptions.raise_compiler_error(
                    "The list '" ~ list ~ "' was [" ~ existing | join(", ") ~ "] and is now ["
                    ~ labels | join(", ") ~ "]: PostgreSQL cannot remove or reorder the labels of an"
                    ~ " enum type. To rename one: alter type " ~ enum_type(type) ~ " rename value 'old'"
                    ~ " to 'new', and change the list in the same way. To remove or reorder one: drop"
                    ~ " the schema '" ~ target.schema ~ "' (the raw events are elsewhere) and build."
                    ~ " Remove aliases of a removed label from seeds/label_aliases.csv."
                ) }}
            {% endif %}
            {% for label in labels if label not in existing %}
                {% set place = labels.index(label) %}
                {% do run_query(
                    "alter type " ~ enum_type(type) ~ " add value '" ~ label ~ "'"
                    ~ (" after '" ~ labels[place - 1] ~ "'" if place
                       else " before '" ~ existing[0] ~ "'")
                ) %}
            {% endfor %}
        {% endif %}
    {% endfor %}
{% endmacro %}
