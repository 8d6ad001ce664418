{{ config(
    materialized='token_tracking_view',
    view_options='security_barrier = true',
    tenant_readable=true,
) }}

{{ costs_as_of_now(ref('int_usage__hourly'), ref('daily_token_cost')) }}
