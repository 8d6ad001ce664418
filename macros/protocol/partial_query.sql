{% macro mark_partial_read(relation) -%}
    {#- The marks are comments: the query as it stands reads everything, and a partial build can only
        read a part of that. -#}
    /*input*/ {{ relation }} /*of build*/
{%- endmacro %}


{% macro marked_input(query) %}
    {% set inputs = modules.re.findall('(?s)/[*]input[*]/(.*?)/[*]of build[*]/', query) %}
    {% if inputs | length != 1 %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' must read its input once through mark_partial_read(), and does so "
            ~ inputs | length ~ " times."
        ) }}
    {% endif %}
    {{ return(inputs[0] | trim) }}
{% endmacro %}


{% macro partial_query(query, part) %}
    {% set begin, end = '/*input*/', '/*of build*/' %}
    {{ return(query.split(begin)[0] ~ part ~ query.split(end)[1]) }}
{% endmacro %}
