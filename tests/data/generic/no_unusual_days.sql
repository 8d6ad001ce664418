{% test no_unusual_days(model, times_usual, least_tokens) %}
{%- set changes = changes_to_compare([model], is_doubt=true) -%}
with

-- one row per usage_date and tenant_id
days as (
    select
        usage_date,
        tenant_id,
        sum(tokens) as tokens
    from {{ compared_groups(model, {'usage_date': 'usage_date'}, changes) }} as changed
    group by
        usage_date,
        tenant_id
    having sum(tokens) >= {{ least_tokens }}
),

-- one row per usage_date and tenant_id in the four weeks before such a day
wanted as (
    select distinct
        days.usage_date - back.days as usage_date,
        days.tenant_id
    from days
    cross join generate_series(1, 28) as back (days)
),

before as (
    select
        earlier.usage_date,
        earlier.tenant_id,
        sum(earlier.tokens) as tokens
    from {{ rows_of_groups(model, 'wanted', {'usage_date': 'usage_date'}) }} as earlier
    group by
        earlier.usage_date,
        earlier.tenant_id
),

final as (
    select
        days.usage_date,
        days.tenant_id,
        days.tokens,
        percentile_cont(0.5) within group (order by before.tokens)::bigint as usual_tokens,
        count(*) as days_with_usage_before
    from days
    cross join generate_series(1, 28) as back (days)
    inner join before
        on
            days.tenant_id = before.tenant_id
            and days.usage_date - back.days = before.usage_date
    group by
        days.usage_date,
        days.tenant_id,
        days.tokens
)

select *
from final
where
    days_with_usage_before >= 7
    and tokens > {{ times_usual }} * usual_tokens
{% endtest %}
