{{ config(materialized='token_tracking_view') }}

{{ attributed_events(ref('stg_usage__events')) }}
