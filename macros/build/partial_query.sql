{% macro partial_query(query) %}
    {% set marks = query.count('/*partial ') %}
    {% if marks != 2 %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' must read the events once through of_affected_hours(), and does so "
            ~ (marks // 2) ~ " times."
        ) }}
    {% endif %}
    {{ return(modules.re.sub('(?s)/[*]partial (.*?)[*]/', '\\1', query)) }}
{% endmacro %}
