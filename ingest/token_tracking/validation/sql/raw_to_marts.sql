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

-- which prices the costs were built with
build as (
    select build_status.price_snapshot
    from build_status
    where build_status.model = 'daily_token_cost'
),

prices as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by
                latest.price_list,
                latest.provider,
                latest.model,
                latest.token_kind,
                latest.service_tier,
                latest.context_over
            order by latest.valid_from
        ) as valid_to
    from (
        -- one row per price and instant: the newest revision that the build saw
        select distinct on (
            recorded.price_list,
            recorded.provider,
            recorded.model,
            recorded.token_kind,
            recorded.service_tier,
            recorded.context_over,
            recorded.valid_from
        )
            recorded.price_list,
            recorded.provider,
            recorded.model,
            recorded.token_kind,
            recorded.service_tier,
            recorded.context_over,
            recorded.valid_from,
            recorded.currency,
            recorded.amount
        from token_tracking_raw.model_prices as recorded
        inner join build
            on pg_visible_in_snapshot(recorded.ingest_xid::text::xid8, build.price_snapshot)
        order by
            recorded.price_list,
            recorded.provider,
            recorded.model,
            recorded.token_kind,
            recorded.service_tier,
            recorded.context_over,
            recorded.valid_from,
            recorded.revision desc
    ) as latest
),

aliases as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.provider, latest.alias order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (recorded.provider, recorded.alias, recorded.valid_from)
            recorded.provider,
            recorded.alias,
            recorded.valid_from,
            recorded.priced_provider,
            recorded.priced_model
        from token_tracking_raw.model_aliases as recorded
        inner join build
            on pg_visible_in_snapshot(recorded.ingest_xid::text::xid8, build.price_snapshot)
        order by recorded.provider, recorded.alias, recorded.valid_from, recorded.revision desc
    ) as latest
),

rules as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.price_list order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (recorded.price_list, recorded.valid_from)
            recorded.price_list,
            recorded.valid_from,
            recorded.base_list,
            recorded.factor
        from token_tracking_raw.price_list_rules as recorded
        inner join build
            on pg_visible_in_snapshot(recorded.ingest_xid::text::xid8, build.price_snapshot)
        order by recorded.price_list, recorded.valid_from, recorded.revision desc
    ) as latest
),

assignments as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.tenant_id order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (recorded.tenant_id, recorded.valid_from)
            recorded.tenant_id,
            recorded.valid_from,
            recorded.price_list
        from token_tracking_raw.tenant_price_lists as recorded
        inner join build
            on pg_visible_in_snapshot(recorded.ingest_xid::text::xid8, build.price_snapshot)
        order by recorded.tenant_id, recorded.valid_from, recorded.revision desc
    ) as latest
),

-- in an array, for a look at each event
bounds as (
    select array_agg(distinct prices.context_over order by prices.context_over) as of_prices
    from prices
),

-- one row per hour, date, payer, requester, agent, labels and what else prices depend on:
-- the only scan of the raw events, of those that the build saw
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
        events.provider,
        events.service_tier,
        -- the size of request that has a price: the highest bound that it is above
        coalesce(
            (select bounds.of_prices from bounds)[
                width_bucket(events.input_tokens - 1, (select bounds.of_prices from bounds))
            ],
            0
        ) as bound,
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
        events.model,
        events.provider,
        events.service_tier,
        bound
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

-- one row per hour, date, payer and what prices depend on
usage as (
    select
        counted.usage_hour,
        counted.usage_date,
        counted.tenant_id,
        coalesce(counted.provider, 'unknown') as provider,
        coalesce(counted.model, 'unknown') as model,
        coalesce(counted.service_tier, 'standard') as service_tier,
        counted.bound,
        sum(counted.tokens) as tokens,
        sum(counted.input_tokens) as input_tokens,
        sum(counted.output_tokens) as output_tokens,
        sum(counted.cache_read_tokens) as cache_read_tokens,
        sum(counted.cache_write_tokens) as cache_write_tokens,
        sum(counted.cache_write_long_tokens) as cache_write_long_tokens,
        sum(counted.reasoning_tokens) as reasoning_tokens
    from counted
    group by
        counted.usage_hour,
        counted.usage_date,
        counted.tenant_id,
        coalesce(counted.provider, 'unknown'),
        coalesce(counted.model, 'unknown'),
        coalesce(counted.service_tier, 'standard'),
        counted.bound
),

named as (
    select
        usage.*,
        coalesce(aliases.priced_provider, usage.provider) as priced_provider,
        coalesce(aliases.priced_model, usage.model) as priced_model,
        coalesce(assignments.price_list, 'list') as billed_list
    from usage
    left join aliases
        on
            usage.provider = aliases.provider
            and usage.model = aliases.alias
            and usage.usage_hour >= aliases.valid_from
            and usage.usage_hour < aliases.valid_to
    left join assignments
        on
            usage.tenant_id = assignments.tenant_id
            and usage.usage_hour >= assignments.valid_from
            and usage.usage_hour < assignments.valid_to
),

-- lists that a mart has for payers of others, too: the project's variable says which
lists_of_all as (
    select distinct in_mart.price_list
    from daily_token_cost as in_mart
    where not in_mart.is_billed
),

kinds as (
    select
        named.usage_hour,
        named.usage_date,
        named.tenant_id,
        named.provider,
        named.model,
        named.service_tier,
        named.bound,
        named.priced_provider,
        named.priced_model,
        lists.price_list,
        lists.price_list = named.billed_list as is_billed,
        kinds.token_kind,
        kinds.tokens
    from named
    cross join lateral (
        select named.billed_list as price_list
        union
        select lists_of_all.price_list
        from lists_of_all
    ) as lists
    cross join lateral (
        values
        ('input', named.input_tokens - named.cache_read_tokens - named.cache_write_tokens),
        ('cache_read', named.cache_read_tokens),
        ('cache_write', named.cache_write_tokens - named.cache_write_long_tokens),
        ('cache_write_long', named.cache_write_long_tokens),
        ('output', named.output_tokens - named.reasoning_tokens),
        ('reasoning', named.reasoning_tokens),
        ('unsplit', named.tokens - named.input_tokens - named.output_tokens)
    ) as kinds (token_kind, tokens)
    where kinds.tokens <> 0
),

-- one row per list, list that it takes prices from, and period: itself, the base of its
-- rule, and the base of that one's; nearer ones go before
sources as (
    select
        lists.price_list,
        lists.price_list as source_list,
        1::numeric as factor,
        0 as distance,
        '-infinity'::timestamptz as valid_from,
        'infinity'::timestamptz as valid_to
    from (select distinct kinds.price_list from kinds) as lists

    union all

    select
        rules.price_list,
        rules.base_list as source_list,
        rules.factor,
        1 as distance,
        rules.valid_from,
        rules.valid_to
    from rules

    union all

    select
        rules.price_list,
        further.base_list as source_list,
        rules.factor * further.factor as factor,
        2 as distance,
        greatest(rules.valid_from, further.valid_from) as valid_from,
        least(rules.valid_to, further.valid_to) as valid_to
    from rules
    inner join rules as further on rules.base_list = further.price_list
),

-- one row per hour, name, tier, size, kind and list that has a price: the first that counts
priced as materialized (
    select distinct on (
        wanted.usage_hour,
        wanted.priced_provider,
        wanted.priced_model,
        wanted.service_tier,
        wanted.bound,
        wanted.token_kind,
        wanted.price_list
    )
        wanted.*,
        prices.currency,
        prices.amount * sources.factor as amount
    from (
        select distinct
            kinds.usage_hour,
            kinds.priced_provider,
            kinds.priced_model,
            kinds.service_tier,
            kinds.bound,
            kinds.token_kind,
            kinds.price_list
        from kinds
    ) as wanted
    inner join sources
        on
            wanted.price_list = sources.price_list
            and wanted.usage_hour >= sources.valid_from
            and wanted.usage_hour < sources.valid_to
    inner join prices
        on
            sources.source_list = prices.price_list
            and wanted.priced_provider = prices.provider
            and wanted.priced_model = prices.model
            and wanted.token_kind = prices.token_kind
            and wanted.service_tier = prices.service_tier
            and wanted.bound >= prices.context_over
            and wanted.usage_hour >= prices.valid_from
            and wanted.usage_hour < prices.valid_to
    where prices.amount is not null
    order by
        wanted.usage_hour,
        wanted.priced_provider,
        wanted.priced_model,
        wanted.service_tier,
        wanted.bound,
        wanted.token_kind,
        wanted.price_list,
        sources.distance,
        prices.context_over desc
),

-- what both say, of any label: billed_tokens_are_those_of_daily compares these
said as (
    select
        in_mart.usage_date,
        in_mart.tenant_id,
        in_mart.provider,
        in_mart.model,
        in_mart.token_kind,
        in_mart.service_tier,
        in_mart.price_list,
        in_mart.is_billed,
        in_mart.currency,
        'mart' as sayer,
        in_mart.tokens::numeric as tokens,
        in_mart.cost,
        in_mart.unpriced_tokens::numeric as unpriced_tokens
    from daily_token_cost as in_mart

    union all

    select
        kinds.usage_date,
        kinds.tenant_id,
        kinds.provider,
        kinds.model,
        kinds.token_kind,
        kinds.service_tier,
        kinds.price_list,
        kinds.is_billed,
        priced.currency,
        'raw' as sayer,
        kinds.tokens,
        coalesce(kinds.tokens * priced.amount * 0.000001, 0) as cost,
        case when priced.amount is null then kinds.tokens else 0 end as unpriced_tokens
    from kinds
    left join priced
        on
            kinds.usage_hour = priced.usage_hour
            and kinds.priced_provider = priced.priced_provider
            and kinds.priced_model = priced.priced_model
            and kinds.service_tier = priced.service_tier
            and kinds.bound = priced.bound
            and kinds.token_kind = priced.token_kind
            and kinds.price_list = priced.price_list
),

-- by groups, in which null currencies are equal, as they are not in a join
compared as (
    select
        said.usage_date,
        said.tenant_id,
        said.provider,
        said.model,
        said.token_kind,
        said.service_tier,
        said.price_list,
        said.is_billed,
        said.currency,
        sum(said.tokens) filter (where said.sayer = 'mart') as tokens_of_mart,
        sum(said.tokens) filter (where said.sayer = 'raw') as tokens_of_raw,
        sum(said.cost) filter (where said.sayer = 'mart') as cost_of_mart,
        sum(said.cost) filter (where said.sayer = 'raw') as cost_of_raw,
        sum(said.unpriced_tokens) filter (where said.sayer = 'mart') as unpriced_of_mart,
        sum(said.unpriced_tokens) filter (where said.sayer = 'raw') as unpriced_of_raw
    from said
    group by
        said.usage_date,
        said.tenant_id,
        said.provider,
        said.model,
        said.token_kind,
        said.service_tier,
        said.price_list,
        said.is_billed,
        said.currency
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
            'tokens', 'event_count', 'input_tokens', 'output_tokens', 'cache_read_tokens',
            'cache_write_tokens', 'cache_write_long_tokens', 'reasoning_tokens'
        ] as sums_of,
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
            'tokens', 'event_count', 'input_tokens', 'output_tokens', 'cache_read_tokens',
            'cache_write_tokens', 'cache_write_long_tokens', 'reasoning_tokens'
        ] as sums_of,
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
            'tokens', 'event_count', 'input_tokens', 'output_tokens', 'cache_read_tokens',
            'cache_write_tokens', 'cache_write_long_tokens', 'reasoning_tokens'
        ] as sums_of,
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
        array['tokens', 'event_count'] as sums_of,
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

    union all

    select
        'daily_token_cost' as rule,
        json_build_object(
            'usage_date', compared.usage_date,
            'tenant_id', compared.tenant_id,
            'provider', compared.provider,
            'model', compared.model,
            'token_kind', compared.token_kind,
            'service_tier', compared.service_tier,
            'price_list', compared.price_list,
            'is_billed', compared.is_billed,
            'currency', compared.currency
        ) as grain,
        array['tokens', 'cost', 'unpriced_tokens'] as sums_of,
        array[
            compared.tokens_of_mart, compared.cost_of_mart, compared.unpriced_of_mart
        ] as mart_says,
        array[compared.tokens_of_raw, compared.cost_of_raw, compared.unpriced_of_raw] as raw_says
    from compared
)

select
    differing.rule,
    differing.grain,
    sums.sum_of,
    trim_scale(sums.mart_says) as mart_says,
    trim_scale(sums.raw_says) as raw_says,
    trim_scale(coalesce(sums.mart_says, 0) - coalesce(sums.raw_says, 0)) as difference
from differing
cross join lateral unnest(
    differing.sums_of,
    differing.mart_says,
    differing.raw_says
) as sums (sum_of, mart_says, raw_says)
where
    differing.mart_says is distinct from differing.raw_says
    and differing.rule in (select marts.model from marts)
    and sums.mart_says is distinct from sums.raw_says
