{% macro mark_partial_read(events, occurred_at) -%}
    {#- The marks are comments, so that the query as it stands reads everything, and a partial build can
        only count a part of that: partial_query() turns the comments into SQL. offset 0 keeps the
        planner from joining before it has read one hour by the index. -#}
    /*partial affected_hours cross join lateral (select hour_events.* from */
    {{ events }}
    /*partial as hour_events
        where hour_events.{{ occurred_at }} >= affected_hours.usage_hour
        and hour_events.{{ occurred_at }} < affected_hours.usage_hour + interval '1 hour'
        offset 0
    ) */
{%- endmacro %}


{% macro partial_query(query) %}
    {% set marks = query.count('/*partial ') %}
    {% if marks != 2 %}
        {{ exceptions.raise_compiler_error(
            "'" ~ model.name ~ "' must read the events once through mark_partial_read(), and does so "
            ~ (marks // 2) ~ " times."
        ) }}
    {% endif %}
    {{ return(modules.re.sub('(?s)/[*]partial (.*?)[*]/', '\\1', query)) }}
{% endmacro %}
