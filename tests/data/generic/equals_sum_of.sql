{% test equals_sum_of(model, finer, keys, numbers, condition='true') %}
{%- set rollups = [model, finer] -%}
{%- set changes = changes_to_compare(rollups) -%}
{{ changes.mark }}
{#- The keys before the payer; the log and the finer rollup name a month by its days. -#}
{%- set periods = {} -%}
{%- for key in keys[:keys.index('tenant_id')] -%}
    {%- do periods.update({key: month_of('usage_date') if key == 'usage_month' else key}) -%}
{%- endfor -%}
with

found as (
    select
        {{ (keys + numbers) | join(',\n        ') }}
    from {{ compared_groups(model, periods, changes, is_finer=false) }} as compared
),

expected as (
    select
        {%- for key in keys %}
        {{ periods.get(key, key) }} as {{ key }},
        {%- endfor %}
        {{ numbers | join(',\n        ') }}
    from {{ compared_groups(finer, periods, changes) }} as compared
    where {{ condition }}
)

{{ differing_totals(keys, numbers, one_row='found', unless_behind=rollups) }}
{% endtest %}
