{% test equals_sum_of(model, finer, keys, numbers, condition='true') %}
{%- set period = keys[0] -%}
{%- set rollups = [model, finer] -%}
{%- set changes = changes_to_compare(rollups) -%}
{{ changes.mark }}
with

found as (
    select
        {{ (keys + numbers) | join(',\n        ') }}
    from {{ model }}
    where
    {%- if period == 'usage_month' %}
        {{ is_compared(period, month_of('changes.usage_date'), changes) }}
    {%- else %}
        {{ is_compared(period, 'changes.' ~ period, changes) }}
    {%- endif %}
),

expected as (
    select
        {{ month_of('usage_date') ~ ' as usage_month' if period == 'usage_month' else period }},
        {{ (keys[1:] + numbers) | join(',\n        ') }}
    from {{ finer }}
    where
        {{ condition }}
    {%- if period == 'usage_month' %}
        -- every day of the months, by the index on days
        and {{ is_compared(
            'usage_date',
            "generate_series(" ~ month_of('changes.usage_date') ~ "::timestamp, "
            ~ month_of('changes.usage_date') ~ " + interval '1 month - 1 day', '1 day')::date",
            changes
        ) }}
    {%- else %}
        and {{ is_compared(period, 'changes.' ~ period, changes) }}
    {%- endif %}
)

{{ differing_totals(keys, numbers, one_row='found', unless_behind=rollups) }}
{% endtest %}
