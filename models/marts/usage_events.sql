{{ config(materialized='view') }}

{{ attributed_events(ref('stg_usage__events')) }}
