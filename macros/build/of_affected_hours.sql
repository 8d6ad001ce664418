{% macro of_affected_hours(events, occurred_at) -%}
    {#- In comments, so that the query by itself reads everything and what a partial build counts can
        only be a part of that; partial_query() takes the comments' marks away. offset 0 keeps the
        planner from joining before it has read one hour by the index. -#}
    /*partial affected_hours cross join lateral (select hour_events.* from */
    {{ events }}
    /*partial as hour_events
        where hour_events.{{ occurred_at }} >= affected_hours.usage_hour
        and hour_events.{{ occurred_at }} < affected_hours.usage_hour + interval '1 hour'
        offset 0
    ) */
{%- endmacro %}
