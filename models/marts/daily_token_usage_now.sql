{{ config(
    materialized='token_tracking_view',
    view_options='security_barrier = true',
    tenant_readable=true,
) }}

{{ totals_as_of_now(
    ref('daily_token_usage'),
    {'usage_date': 'events.usage_date'},
    [ref('int_usage__hourly')],
) }}
