{% test grows_by_new_events(model, base) %}
{%- set changes = changes_to_compare([base, model], keeps_totals=true) -%}
{{ changes.mark }}
{%- set keys = ['usage_month', 'tenant_id', 'token_type', 'operation', 'model'] -%}
{%- set numbers = usage_numbers() -%}
with

{% if not changes.log -%}
expected as (
    select
        {{ month_of('usage_date') }} as usage_month,
        {{ (keys[1:] + numbers) | join(',\n        ') }}
    from (
        {{ recounted_events(base, changes) }}
    ) as recounted
),

found as (
    select
        {{ (keys + numbers) | join(',\n        ') | replace('token_type', 'token_type::text')
            | replace('operation', 'operation::text') }}
    from {{ model }}
)
{%- else -%}
{%- set periods = {'usage_month': month_of('usage_date')} -%}
{{ corrected_events(changes.snapshot) }},

-- what is new, and what counts otherwise, as it counts now
added as (
    select
        {{ month_of('usage_date') }} as usage_month,
        {{ (keys[1:] + numbers) | join(',\n        ') }}
    from (
        {{ recounted_events(base, changes, events=new_or_corrected_events(changes.snapshot)) }}
    ) as recounted
),

-- what counts otherwise, as it counted when the totals were proved
taken as (
    select
        {{ month_of('usage_date') }} as usage_month,
        {{ (keys[1:] + numbers) | join(',\n        ') }}
    from (
        {{ recounted_events(base, changes, events='corrected', snapshot=saved_proof('snapshot')) }}
    ) as recounted
),

-- one row per usage_month and payer of whom something is new, or was changed by a build
changed as (
    select usage_month, tenant_id from {{ groups_changed(periods, changes) }} as logged
    union
    select usage_month, tenant_id from added
    union
    select usage_month, tenant_id from taken
),

proved as (
    select totals.*
    from {{ rows_of_groups(build_table('proved_totals'), 'changed', own_periods(periods)) }} as totals
),

-- one row per grain of the months
expected as (
    select
        {{ keys | join(',\n        ') }},
        {%- for number in numbers %}
        sum({{ number }}) as {{ number }}{{ "," if not loop.last }}
        {%- endfor %}
    from (
        select {{ (keys + numbers) | join(', ') }} from proved
        union all
        select {{ (keys + numbers) | join(', ') }} from added
        union all
        select {{ keys | join(', ') }}, -{{ numbers | join(', -') }} from taken
    ) as counted
    group by
        {{ keys | join(',\n        ') }}
    having (sum(event_count), sum(tokens)) <> (0, 0)
),

found as (
    select
        {%- for key in keys %}
        months.{{ key }}{{ '::text' if key in ['token_type', 'operation'] }},
        {%- endfor %}
        months.{{ numbers | join(',\n        months.') }}
    from {{ rows_of_groups(model, 'changed', own_periods(periods)) }} as months
)
{%- endif %}

{{ differing_totals(keys, numbers, unless_behind=[base, model], unless_aliases_changed=base) }}
{% endtest %}
