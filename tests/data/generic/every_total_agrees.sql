{% test every_total_agrees(model) %}
{%- set changes = changes_to_compare([ref('hourly_token_usage'), model]) -%}
{{ changes.mark }}
{%- set marts = {'base': model, 'hourly': ref('hourly_token_usage')} -%}
{%- set coarser = {'daily': ref('daily_token_usage'), 'monthly': ref('monthly_token_usage')} -%}
{#- A build compares hours, not whole days: days and months have other tests in a build. -#}
{%- do marts.update(coarser if 'full' in config.get('tags', []) else {}) -%}
with

raw_events as (
    {{ recounted_events(model, changes) }}
)
{%- for side, mart in marts.items() %},

{{ side }} as (
    select
        tenant_id,
        token_type::text as token_type,
        tokens,
        event_count
    from {{ mart }}
    where {{ is_recounted('usage_hour', changes) }}
)
{%- endfor %}

{{ differing_totals(
    ['tenant_id', 'token_type'],
    ['tokens', 'event_count'],
    sides=['raw_events'] + marts.keys() | list,
    grouped='grouping sets ((tenant_id), (token_type), ())',
    unless_behind=marts.values() | list,
    unless_aliases_changed=model
) }}
{% endtest %}
