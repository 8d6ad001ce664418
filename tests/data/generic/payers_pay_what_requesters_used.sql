{% test payers_pay_what_requesters_used(model) %}
{%- set marts = {
    'usage_date': ref('daily_token_usage'),
    'usage_hour': ref('hourly_token_usage'),
} -%}
{%- set period = 'usage_date' if compares_everything([model]) else 'usage_hour' -%}
with

requesters as (
    {{ recounted_events(model) }}
),

payers as (
    select *
    from {{ marts[period] }}
    where {{ reconciled(period, 'changes.usage_hour', [model]) }}
)

{{ differing_totals(
    [period],
    ['tokens', 'input_tokens', 'output_tokens', 'event_count'],
    sides=['payers', 'requesters'],
    unless_behind=[marts[period], model]
) }}
{% endtest %}
