{% test payers_pay_what_requesters_used(model) %}
{%- set changes = changes_to_compare([ref('hourly_token_usage'), model]) -%}
{{ changes.mark }}
{%- set marts = {
    'usage_date': ref('daily_token_usage'),
    'usage_hour': ref('hourly_token_usage'),
} -%}
{%- set period = 'usage_date' if 'full' in config.get('tags', []) else 'usage_hour' -%}
with

requesters as (
    {{ recounted_events(model, changes) }}
),

payers as (
    select *
    from {{ marts[period] }}
    where {{ is_recounted(period, changes) }}
)

{{ differing_totals(
    [period],
    usage_numbers(),
    sides=['payers', 'requesters'],
    unless_behind=[marts[period], model]
) }}
{% endtest %}
