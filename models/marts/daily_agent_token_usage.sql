{{ config(
    period={'usage_date': 'usage_date'},
    indexes=[
        {
            'columns': [
                'usage_date', 'tenant_id', 'attribution_rule',
                grain_digest(['requester_tenant_id', 'agent_id']),
            ],
            'unique': true,
        },
    ],
) }}

with

hourly as (
    select base.* from {{ mark_partial_read(ref('int_usage__hourly')) }} as base
    where agent_id is not null
),

-- one row per usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule
final as (
    select
        hourly.usage_date,
        hourly.tenant_id,
        hourly.requester_tenant_id,
        hourly.agent_id,
        hourly.attribution_rule,
        sum(hourly.tokens)::bigint as tokens,
        sum(hourly.event_count)::bigint as event_count
    from hourly
    group by
        usage_date,
        tenant_id,
        requester_tenant_id,
        agent_id,
        attribution_rule
)

select * from final
