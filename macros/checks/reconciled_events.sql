{% macro reconciled_events(changes) -%}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- if not changes.log -%}
    {{ events }}
    {%- else -%}
    (
        select hour_events.*
        from (
            select distinct changes.usage_hour
            from {{ changes.log }} as changes
            where changes.run_no >= {{ first_run(changes) }}
        ) as hours
        cross join lateral (
            select events.*
            from {{ events }} as events
            where
                events.occurred_at >= hours.usage_hour
                and events.occurred_at < hours.usage_hour + interval '1 hour'
            offset 0
        ) as hour_events
        offset 0
    )
    {%- endif %}
{%- endmacro %}
