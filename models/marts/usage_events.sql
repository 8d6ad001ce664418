{{ config(
    materialized='token_tracking_view',
    post_hook="{{ billed_events(this, ref('agent_owner_periods')) }}",
) }}

-- depends_on: {{ ref('agent_owner_periods') }}
{{ attributed_events(ref('stg_usage__events')) }}
