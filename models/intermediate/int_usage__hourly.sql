{{ config(
    indexes=[
        {
            'columns': [
                'usage_hour', 'usage_date', 'attribution_rule', 'token_type', 'operation',
                'context_over',
                grain_digest([
                    'tenant_id', 'requester_tenant_id', 'agent_id', 'model', 'provider', 'service_tier',
                    'unmapped_token_type', 'unmapped_operation',
                ]),
            ],
            'unique': true,
        },
        {'columns': ['usage_date', 'tenant_id', 'usage_hour']},
        {'columns': ['provider', 'model', 'usage_hour']},
    ],
) }}

with

-- Not from the view usage_events: this query holds all that the totals depend on, so
-- that a change of any of it shows, whatever part of the project is built.
events as (
    {% set events = mark_partial_read(ref('stg_usage__events')) -%}
    {{ attributed_events(events) }}
),

-- one row per usage_hour, usage_date, payer, requester, agent, rule, labels, model,
-- provider, service tier and size of the request
final as (
    select
        events.usage_hour,
        events.usage_date,
        events.tenant_id,
        events.requester_tenant_id,
        events.agent_id,
        events.attribution_rule,
        events.token_type,
        events.operation,
        events.model,
        events.provider,
        events.service_tier,
        {{ context_over('events.input_tokens') }} as context_over,
        case
            when events.token_type = 'unknown' then events.token_type_label
        end as unmapped_token_type,
        case
            when events.operation = 'unknown' then events.operation_label
        end as unmapped_operation,
        {{ usage_sums('events', 'events.usage_hour', of_events=true) }}
    from events
    group by
        usage_hour,
        usage_date,
        tenant_id,
        requester_tenant_id,
        agent_id,
        attribution_rule,
        token_type,
        operation,
        model,
        provider,
        service_tier,
        context_over,
        unmapped_token_type,
        unmapped_operation
)

-- In the order of time on disk, too: who reads a day reads few pages.
select * from final
order by usage_hour
