with

-- one row per payer and token type with usage
daily as (
    select
        daily_rows.tenant_id,
        daily_rows.token_type,
        sum(daily_rows.tokens) as tokens,
        sum(daily_rows.event_count) as event_count,
        min(daily_rows.usage_date) as first_used_on,
        max(daily_rows.usage_date) as last_used_on
    from daily_token_usage as daily_rows
    group by daily_rows.tenant_id, daily_rows.token_type
),

payers as (
    select
        daily.tenant_id,
        sum(daily.tokens) as tokens,
        sum(daily.event_count) as event_count,
        min(daily.first_used_on) as first_used_on,
        max(daily.last_used_on) as last_used_on
    from daily
    group by daily.tenant_id
),

types as (
    select labels.token_type
    from unnest(enum_range(null::token_type)) as labels (token_type)
),

-- one row per payer: the columns of the view by name, as each type has one
expected as (
    select
        payers.tenant_id,
        jsonb_object_agg(types.token_type::text || '_tokens', coalesce(daily.tokens, 0))
        || jsonb_build_object(
            'tokens', payers.tokens,
            'event_count', payers.event_count,
            'first_used_on', payers.first_used_on,
            'last_used_on', payers.last_used_on,
            'rows', 1
        ) as numbers
    from payers
    cross join types
    left join daily
        on
            payers.tenant_id = daily.tenant_id
            and types.token_type = daily.token_type
    group by
        payers.tenant_id,
        payers.tokens,
        payers.event_count,
        payers.first_used_on,
        payers.last_used_on
),

expected_numbers as (
    select
        expected.tenant_id,
        numbers.sum_of,
        numbers.daily_says
    from expected
    cross join lateral jsonb_each_text(expected.numbers) as numbers (sum_of, daily_says)
),

shown_numbers as (
    select
        shown.tenant_id,
        numbers.sum_of,
        numbers.tenants_say
    from (
        select
            tenants.tenant_id,
            to_jsonb(tenants) - 'tenant_id' || jsonb_build_object(
                'rows', count(*) over (partition by tenants.tenant_id)
            ) as numbers
        from tenant_token_usage as tenants
    ) as shown
    cross join lateral jsonb_each_text(shown.numbers) as numbers (sum_of, tenants_say)
)

select
    tenant_id,
    sum_of,
    shown_numbers.tenants_say,
    expected_numbers.daily_says,
    case
        when sum_of not like '%\_on'
            then
                coalesce(shown_numbers.tenants_say::numeric, 0)
                - coalesce(expected_numbers.daily_says::numeric, 0)
    end as difference
from shown_numbers
full outer join expected_numbers using (tenant_id, sum_of)
where
    -- a type that was removed leaves a column of zeros
    shown_numbers.tenants_say is distinct from coalesce(expected_numbers.daily_says, '0')
