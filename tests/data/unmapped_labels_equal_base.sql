{{ config(tags=['full']) }}

with

found as (
    select * from {{ ref('unmapped_labels') }}
),

hourly as (
    select * from {{ ref('int_usage__hourly') }}
    where 'unknown' in (token_type::text, operation::text)
),

expected as (
    select
        labels.label_kind,
        labels.label,
        hourly.tokens,
        hourly.event_count
    from hourly
    cross join
        lateral (
            values
            ('token_type', hourly.unmapped_token_type),
            ('operation', hourly.unmapped_operation)
        ) as labels (label_kind, label)
    where labels.label is not null
)

{{ differing_totals(
    ['label_kind', 'label'],
    ['tokens', 'event_count'],
    one_row='found'
) }}
