with

-- read by scalar subqueries: a join with it would keep the count of raw events from
-- running in parallel
base as (
    select
        build_status.run_number,
        build_status.snapshot,
        build_status.billing_timezone
    from build_status
    where build_status.model = 'int_usage__hourly'
),

-- only totals of the base's build, with today's label aliases, can be compared;
-- every_total_is_of_one_build reports the others
marts as (
    select build_status.model
    from build_status
    where
        build_status.run_number = (select base.run_number from base)
        and build_status.aliases_are_current
),

-- one row per hour, date, payer, requester, agent and labels: the only scan of the raw
-- events, of those that the build saw
counted as (
    select
        date_bin('1 hour', events.occurred_at, '2000-01-01 00:00+00') as usage_hour,
        events.usage_date,
        events.tenant_id,
        events.requester_tenant_id,
        events.agent_id,
        events.attribution_rule,
        events.token_type,
        events.operation,
        events.model,
        sum(events.tokens) as tokens,
        coalesce(sum(events.input_tokens), 0) as input_tokens,
        coalesce(sum(events.output_tokens), 0) as output_tokens,
        count(*) as event_count,
        coalesce(sum(events.cache_read_tokens), 0) as cache_read_tokens,
        coalesce(sum(events.cache_write_tokens), 0) as cache_write_tokens,
        coalesce(sum(events.cache_write_long_tokens), 0) as cache_write_long_tokens,
        coalesce(sum(events.reasoning_tokens), 0) as reasoning_tokens
    from {recounted_events} as events
    group by
        usage_hour,
        events.usage_date,
        events.tenant_id,
        events.requester_tenant_id,
        events.agent_id,
        events.attribution_rule,
        events.token_type,
        events.operation,
        events.model
),

-- one row per label: the label itself, or what its alias stands for, or unknown. Each
-- label once: there are many events, and the planner, without statistics of the
-- aliases, expects three of them
token_types as materialized (
    select
        labels.token_type as label,
        case
            when labels.token_type = any(enum_range(null::token_type)::text[])
                then labels.token_type
            when aliases.label = any(enum_range(null::token_type)::text[]) then aliases.label
            else 'unknown'
        end as token_type
    from (select distinct counted.token_type from counted) as labels
    left join label_aliases as aliases
        on
            aliases.label_kind = 'token_type'
            and labels.token_type = aliases.alias
),

operations as materialized (
    select
        labels.operation as label,
        case
            when labels.operation = any(enum_range(null::operation_type)::text[])
                then labels.operation
            when aliases.label = any(enum_range(null::operation_type)::text[]) then aliases.label
            else 'unknown'
        end as operation
    from (select distinct counted.operation from counted) as labels
    left join label_aliases as aliases
        on
            aliases.label_kind = 'operation'
            and labels.operation = aliases.alias
),

hours as (
    select
        counted.usage_hour,
        counted.usage_date,
        counted.tenant_id,
        token_types.token_type,
        operations.operation,
        coalesce(counted.model, 'unknown') as model,
        sum(counted.tokens) as tokens,
        sum(counted.input_tokens) as input_tokens,
        sum(counted.output_tokens) as output_tokens,
        sum(counted.event_count) as event_count,
        sum(counted.cache_read_tokens) as cache_read_tokens,
        sum(counted.cache_write_tokens) as cache_write_tokens,
        sum(counted.cache_write_long_tokens) as cache_write_long_tokens,
        sum(counted.reasoning_tokens) as reasoning_tokens
    from counted
    inner join token_types on counted.token_type = token_types.label
    inner join operations on counted.operation = operations.label
    group by
        counted.usage_hour,
        counted.usage_date,
        counted.tenant_id,
        token_types.token_type,
        operations.operation,
        coalesce(counted.model, 'unknown')
),

days as (
    select
        hours.usage_date,
        hours.tenant_id,
        hours.token_type,
        hours.operation,
        hours.model,
        sum(hours.tokens) as tokens,
        sum(hours.input_tokens) as input_tokens,
        sum(hours.output_tokens) as output_tokens,
        sum(hours.event_count) as event_count,
        sum(hours.cache_read_tokens) as cache_read_tokens,
        sum(hours.cache_write_tokens) as cache_write_tokens,
        sum(hours.cache_write_long_tokens) as cache_write_long_tokens,
        sum(hours.reasoning_tokens) as reasoning_tokens
    from hours
    group by
        hours.usage_date,
        hours.tenant_id,
        hours.token_type,
        hours.operation,
        hours.model
),

months as (
    select
        date_trunc('month', days.usage_date::timestamp)::date as usage_month,
        days.tenant_id,
        days.token_type,
        days.operation,
        days.model,
        sum(days.tokens) as tokens,
        sum(days.input_tokens) as input_tokens,
        sum(days.output_tokens) as output_tokens,
        sum(days.event_count) as event_count,
        sum(days.cache_read_tokens) as cache_read_tokens,
        sum(days.cache_write_tokens) as cache_write_tokens,
        sum(days.cache_write_long_tokens) as cache_write_long_tokens,
        sum(days.reasoning_tokens) as reasoning_tokens
    from days
    group by
        usage_month,
        days.tenant_id,
        days.token_type,
        days.operation,
        days.model
),

agents as (
    select
        counted.usage_date,
        counted.tenant_id,
        counted.requester_tenant_id,
        counted.agent_id,
        counted.attribution_rule,
        sum(counted.tokens) as tokens,
        sum(counted.event_count) as event_count
    from counted
    where counted.agent_id is not null
    group by
        counted.usage_date,
        counted.tenant_id,
        counted.requester_tenant_id,
        counted.agent_id,
        counted.attribution_rule
),

-- one row per mart and row of it, compared with the raw events; the grains differ
differing as (
    select
        'hourly_token_usage' as rule,
        json_build_object(
            'usage_hour', usage_hour::text,
            'usage_date', usage_date,
            'tenant_id', tenant_id,
            'token_type', token_type,
            'operation', operation,
            'model', model
        ) as grain,
        array[
            mart.tokens, mart.event_count, mart.input_tokens, mart.output_tokens,
            mart.cache_read_tokens, mart.cache_write_tokens, mart.cache_write_long_tokens,
            mart.reasoning_tokens
        ]::numeric[] as mart_says,
        array[
            hours.tokens, hours.event_count, hours.input_tokens, hours.output_tokens,
            hours.cache_read_tokens, hours.cache_write_tokens, hours.cache_write_long_tokens,
            hours.reasoning_tokens
        ]::numeric[] as raw_says
    from (
        select
            hourly_token_usage.usage_hour,
            hourly_token_usage.usage_date,
            hourly_token_usage.tenant_id,
            hourly_token_usage.token_type::text as token_type,
            hourly_token_usage.operation::text as operation,
            hourly_token_usage.model,
            hourly_token_usage.tokens,
            hourly_token_usage.event_count,
            hourly_token_usage.input_tokens,
            hourly_token_usage.output_tokens,
            hourly_token_usage.cache_read_tokens,
            hourly_token_usage.cache_write_tokens,
            hourly_token_usage.cache_write_long_tokens,
            hourly_token_usage.reasoning_tokens
        from hourly_token_usage
    ) as mart
    full outer join hours using (usage_hour, usage_date, tenant_id, token_type, operation, model)

    union all

    select
        'daily_token_usage' as rule,
        json_build_object(
            'usage_date', usage_date,
            'tenant_id', tenant_id,
            'token_type', token_type,
            'operation', operation,
            'model', model
        ) as grain,
        array[
            mart.tokens, mart.event_count, mart.input_tokens, mart.output_tokens,
            mart.cache_read_tokens, mart.cache_write_tokens, mart.cache_write_long_tokens,
            mart.reasoning_tokens
        ]::numeric[] as mart_says,
        array[
            days.tokens, days.event_count, days.input_tokens, days.output_tokens,
            days.cache_read_tokens, days.cache_write_tokens, days.cache_write_long_tokens,
            days.reasoning_tokens
        ]::numeric[] as raw_says
    from (
        select
            daily_token_usage.usage_date,
            daily_token_usage.tenant_id,
            daily_token_usage.token_type::text as token_type,
            daily_token_usage.operation::text as operation,
            daily_token_usage.model,
            daily_token_usage.tokens,
            daily_token_usage.event_count,
            daily_token_usage.input_tokens,
            daily_token_usage.output_tokens,
            daily_token_usage.cache_read_tokens,
            daily_token_usage.cache_write_tokens,
            daily_token_usage.cache_write_long_tokens,
            daily_token_usage.reasoning_tokens
        from daily_token_usage
    ) as mart
    full outer join days using (usage_date, tenant_id, token_type, operation, model)

    union all

    select
        'monthly_token_usage' as rule,
        json_build_object(
            'usage_month', usage_month,
            'tenant_id', tenant_id,
            'token_type', token_type,
            'operation', operation,
            'model', model
        ) as grain,
        array[
            mart.tokens, mart.event_count, mart.input_tokens, mart.output_tokens,
            mart.cache_read_tokens, mart.cache_write_tokens, mart.cache_write_long_tokens,
            mart.reasoning_tokens
        ]::numeric[] as mart_says,
        array[
            months.tokens, months.event_count, months.input_tokens, months.output_tokens,
            months.cache_read_tokens, months.cache_write_tokens, months.cache_write_long_tokens,
            months.reasoning_tokens
        ]::numeric[] as raw_says
    from (
        select
            monthly_token_usage.usage_month,
            monthly_token_usage.tenant_id,
            monthly_token_usage.token_type::text as token_type,
            monthly_token_usage.operation::text as operation,
            monthly_token_usage.model,
            monthly_token_usage.tokens,
            monthly_token_usage.event_count,
            monthly_token_usage.input_tokens,
            monthly_token_usage.output_tokens,
            monthly_token_usage.cache_read_tokens,
            monthly_token_usage.cache_write_tokens,
            monthly_token_usage.cache_write_long_tokens,
            monthly_token_usage.reasoning_tokens
        from monthly_token_usage
    ) as mart
    full outer join months using (usage_month, tenant_id, token_type, operation, model)

    union all

    select
        'daily_agent_token_usage' as rule,
        json_build_object(
            'usage_date', usage_date,
            'tenant_id', tenant_id,
            'requester_tenant_id', requester_tenant_id,
            'agent_id', agent_id,
            'attribution_rule', attribution_rule
        ) as grain,
        array[
            mart.tokens, mart.event_count
        ]::numeric[] as mart_says,
        array[
            agents.tokens, agents.event_count
        ]::numeric[] as raw_says
    from (
        select
            daily_agent_token_usage.usage_date,
            daily_agent_token_usage.tenant_id,
            daily_agent_token_usage.requester_tenant_id,
            daily_agent_token_usage.agent_id,
            daily_agent_token_usage.attribution_rule::text as attribution_rule,
            daily_agent_token_usage.tokens,
            daily_agent_token_usage.event_count
        from daily_agent_token_usage
    ) as mart
    full outer join agents
        using (usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule)
)

select
    differing.rule,
    differing.grain,
    sums.sum_of,
    sums.mart_says,
    sums.raw_says,
    coalesce(sums.mart_says, 0) - coalesce(sums.raw_says, 0) as difference
from differing
cross join lateral unnest(
    array[
        'tokens', 'event_count', 'input_tokens', 'output_tokens', 'cache_read_tokens',
        'cache_write_tokens', 'cache_write_long_tokens', 'reasoning_tokens'
    ],
    differing.mart_says,
    differing.raw_says
) as sums (sum_of, mart_says, raw_says)
where
    differing.mart_says is distinct from differing.raw_says
    and differing.rule in (select marts.model from marts)
    and sums.mart_says is distinct from sums.raw_says
