{{ config(tags=['full']) }}

with

raw_events as (
    {{ recounted_events(ref('int_usage__hourly')) }}
)
{%- set marts = {
    'base': ref('int_usage__hourly'),
    'hourly': ref('hourly_token_usage'),
    'daily': ref('daily_token_usage'),
    'monthly': ref('monthly_token_usage'),
} %}
{%- for side, mart in marts.items() %},

{{ side }} as (
    select
        tenant_id,
        token_type::text as token_type,
        tokens,
        event_count
    from {{ mart }}
)
{%- endfor %}

{{ differing_totals(
    ['tenant_id', 'token_type'],
    ['tokens', 'event_count'],
    sides=['raw_events'] + marts.keys() | list,
    grouped='grouping sets ((tenant_id), (token_type), ())',
    unless_behind=marts.values() | list,
    unless_aliases_changed=ref('int_usage__hourly')
) }}
