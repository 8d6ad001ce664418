{{ config(tags=['full']) }}

with

requesters as (
    {{ recounted_events(ref('int_usage__hourly')) }}
),

payers as (
    select * from {{ ref('daily_token_usage') }}
)

{{ differing_totals(
    ['usage_date'],
    ['tokens', 'input_tokens', 'output_tokens', 'event_count'],
    sides=['payers', 'requesters'],
    unless_behind=[ref('daily_token_usage'), ref('int_usage__hourly')]
) }}
