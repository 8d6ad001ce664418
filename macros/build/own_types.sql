{% macro own_types(query) %}
    {#- A deferred input has the enum types of its own schema, of which no contract holds. -#}
    {% if not invocation_args_dict.get('defer') %}
        {{ return(query) }}
    {% endif %}
    {% set columns = [] %}
    {% for column in model.columns.values() %}
        {% set own = '::text::' ~ column.data_type if '.' in column.data_type else '' %}
        {% do columns.append(column.name ~ own ~ ' as ' ~ column.name) %}
    {% endfor %}
    {{ return("select " ~ columns | join(", ") ~ " from (\n" ~ query ~ "\n) as deferred") }}
{% endmacro %}
