{{ config(materialized='token_tracking_view') }}

with

hourly as (
    select * from {{ ref('int_usage__hourly') }}
),

labels as (
    select
        'token_type' as label_kind,
        hourly.unmapped_token_type as label,
        hourly.tokens,
        hourly.event_count
    from hourly
    where hourly.unmapped_token_type is not null

    union all

    select
        'operation' as label_kind,
        hourly.unmapped_operation as label,
        hourly.tokens,
        hourly.event_count
    from hourly
    where hourly.unmapped_operation is not null
),

-- one row per label_kind, label
final as (
    select
        labels.label_kind,
        labels.label,
        sum(labels.tokens)::bigint as tokens,
        sum(labels.event_count)::bigint as event_count
    from labels
    group by
        label_kind,
        label
)

select * from final
