{{ config(
    materialized='token_tracking_view',
    view_options='security_barrier = true',
    tenant_readable=true,
) }}

{{ totals_as_of_now(
    ref('monthly_token_usage'),
    {'usage_month': month_of('events.usage_date')},
    [ref('daily_token_usage'), ref('int_usage__hourly')],
) }}
