{% macro reconciled_events(base) -%}
    {%- set events = source('token_tracking_raw', 'usage_events') -%}
    {%- if compares_everything([base]) -%}
    {{ events }}
    {%- else -%}
    (
        select hour_events.*
        from (
            select distinct changes.usage_hour
            from {{ build_table('rollup_changes', base.schema) }} as changes
            where {{ reconciled('changes.usage_hour', 'changes.usage_hour', [base]) }}
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
