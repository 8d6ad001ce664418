{{ config(tags=['full']) }}

with

found as (
    select
        tenants.tenant_id,
        per_type.token_type,
        case
            when per_type.token_type = 'all' then tenants.first_used_on
        end as first_used_on,
        case
            when per_type.token_type = 'all' then tenants.last_used_on
        end as last_used_on,
        per_type.tokens,
        case
            when per_type.token_type = 'all' then tenants.event_count
        end as event_count
    from {{ ref('tenant_token_usage') }} as tenants
    cross join
        lateral (
            values
            ('all', tenants.tokens)
            {%- for token_type in var('token_types') %},
            ('{{ token_type }}', tenants.{{ token_type }}_tokens)
            {%- endfor %}
        ) as per_type (token_type, tokens)
    where
        per_type.tokens != 0
        or per_type.token_type = 'all'
),

months as (
    select * from {{ ref('monthly_token_usage') }}
),

-- the months have no column for their days
days as (
    select
        daily.tenant_id,
        min(daily.usage_date) as first_used_on,
        max(daily.usage_date) as last_used_on
    from {{ ref('daily_token_usage') }} as daily
    group by daily.tenant_id
),

expected as (
    select
        months.tenant_id,
        'all' as token_type,
        days.first_used_on,
        days.last_used_on,
        months.tokens,
        months.event_count
    from months
    left join days on months.tenant_id = days.tenant_id

    union all

    select
        months.tenant_id,
        months.token_type::text as token_type,
        null::date as first_used_on,
        null::date as last_used_on,
        months.tokens,
        null::bigint as event_count
    from months
    where months.tokens != 0
)

{{ differing_totals(
    ['tenant_id', 'token_type', 'first_used_on', 'last_used_on'],
    ['tokens', 'event_count'],
    one_row='found',
    unless_behind=[ref('daily_token_usage'), ref('monthly_token_usage')]
) }}
