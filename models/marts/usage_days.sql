{{ config(materialized='token_tracking_view') }}

with

daily as (
    select
        min(daily_token_usage.usage_date) as first_date,
        max(daily_token_usage.usage_date) as last_date
    from {{ ref('daily_token_usage') }} as daily_token_usage
),

-- one row per usage_date
final as (
    select dates.midnight::date as usage_date
    from daily
    cross join lateral generate_series(
        daily.first_date::timestamp, daily.last_date::timestamp, interval '1 day'
    ) as dates (midnight)
)

select * from final
