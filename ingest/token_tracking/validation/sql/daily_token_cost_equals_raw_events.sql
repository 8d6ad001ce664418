with

-- read by scalar subqueries, as in raw_to_marts
base as (
    select
        build_status.run_number,
        build_status.snapshot,
        build_status.billing_timezone
    from build_status
    where build_status.model = 'int_usage__hourly'
),

-- no row if the costs are not of the base's build: every_total_is_of_one_build reports it
build as (
    select build_status.price_snapshot
    from build_status
    where
        build_status.model = 'daily_token_cost'
        and build_status.run_number = (select base.run_number from base)
        and build_status.aliases_are_current
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
            rows.price_list,
            rows.provider,
            rows.model,
            rows.token_kind,
            rows.service_tier,
            rows.context_over,
            rows.valid_from
        )
            rows.price_list,
            rows.provider,
            rows.model,
            rows.token_kind,
            rows.service_tier,
            rows.context_over,
            rows.valid_from,
            rows.currency,
            rows.amount
        from token_tracking_raw.model_prices as rows
        inner join build
            on pg_visible_in_snapshot(rows.ingest_xid::text::xid8, build.price_snapshot)
        order by
            rows.price_list,
            rows.provider,
            rows.model,
            rows.token_kind,
            rows.service_tier,
            rows.context_over,
            rows.valid_from,
            rows.revision desc
    ) as latest
),

aliases as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.provider, latest.alias order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (rows.provider, rows.alias, rows.valid_from)
            rows.provider,
            rows.alias,
            rows.valid_from,
            rows.priced_provider,
            rows.priced_model
        from token_tracking_raw.model_aliases as rows
        inner join build
            on pg_visible_in_snapshot(rows.ingest_xid::text::xid8, build.price_snapshot)
        order by rows.provider, rows.alias, rows.valid_from, rows.revision desc
    ) as latest
),

rules as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.price_list order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (rows.price_list, rows.valid_from)
            rows.price_list,
            rows.valid_from,
            rows.base_list,
            rows.factor
        from token_tracking_raw.price_list_rules as rows
        inner join build
            on pg_visible_in_snapshot(rows.ingest_xid::text::xid8, build.price_snapshot)
        order by rows.price_list, rows.valid_from, rows.revision desc
    ) as latest
),

assignments as (
    select
        latest.*,
        lead(latest.valid_from, 1, 'infinity') over (
            partition by latest.tenant_id order by latest.valid_from
        ) as valid_to
    from (
        select distinct on (rows.tenant_id, rows.valid_from)
            rows.tenant_id,
            rows.valid_from,
            rows.price_list
        from token_tracking_raw.tenant_price_lists as rows
        inner join build
            on pg_visible_in_snapshot(rows.ingest_xid::text::xid8, build.price_snapshot)
        order by rows.tenant_id, rows.valid_from, rows.revision desc
    ) as latest
),

-- in an array, for a look at each event
bounds as (
    select array_agg(distinct prices.context_over order by prices.context_over) as of_prices
    from prices
),

-- one row per hour, date, payer, model, tier and size of requests, where sizes have prices
-- of their own: those above a bound
counted as (
    select
        date_bin('1 hour', events.occurred_at, '2000-01-01 00:00+00') as usage_hour,
        events.usage_date,
        events.tenant_id,
        coalesce(events.provider, 'unknown') as used_provider,
        coalesce(events.model, 'unknown') as used_model,
        coalesce(events.service_tier, 'standard') as used_tier,
        coalesce(
            (select bounds.of_prices from bounds)[
                width_bucket(events.input_tokens - 1, (select bounds.of_prices from bounds))
            ],
            0
        ) as bound,
        sum(events.tokens) as tokens,
        coalesce(sum(events.input_tokens), 0) as input_tokens,
        coalesce(sum(events.output_tokens), 0) as output_tokens,
        coalesce(sum(events.cache_read_tokens), 0) as cache_read_tokens,
        coalesce(sum(events.cache_write_tokens), 0) as cache_write_tokens,
        coalesce(sum(events.cache_write_long_tokens), 0) as cache_write_long_tokens,
        coalesce(sum(events.reasoning_tokens), 0) as reasoning_tokens
    from {recounted_events} as events
    where exists (select from build)
    group by
        usage_hour,
        events.usage_date,
        events.tenant_id,
        used_provider,
        used_model,
        used_tier,
        bound
),

used as (
    select
        counted.*,
        coalesce(aliases.priced_provider, counted.used_provider) as priced_provider,
        coalesce(aliases.priced_model, counted.used_model) as priced_model,
        coalesce(assignments.price_list, 'list') as billed_list
    from counted
    left join aliases
        on
            counted.used_provider = aliases.provider
            and counted.used_model = aliases.alias
            and counted.usage_hour >= aliases.valid_from
            and counted.usage_hour < aliases.valid_to
    left join assignments
        on
            counted.tenant_id = assignments.tenant_id
            and counted.usage_hour >= assignments.valid_from
            and counted.usage_hour < assignments.valid_to
),

-- lists that a mart has for payers of others, too: the project's variable says which
lists_of_all as (
    select distinct costs.price_list
    from daily_token_cost as costs
    where not costs.is_billed
),

kinds as (
    select
        used.usage_hour,
        used.usage_date,
        used.tenant_id,
        used.used_provider,
        used.used_model,
        used.used_tier,
        used.bound,
        used.priced_provider,
        used.priced_model,
        lists.price_list,
        lists.price_list = used.billed_list as is_billed,
        kinds.token_kind,
        kinds.tokens
    from used
    cross join lateral (
        select used.billed_list as price_list
        union
        select lists_of_all.price_list
        from lists_of_all
    ) as lists
    cross join lateral (
        values
        ('input', used.input_tokens - used.cache_read_tokens - used.cache_write_tokens),
        ('cache_read', used.cache_read_tokens),
        ('cache_write', used.cache_write_tokens - used.cache_write_long_tokens),
        ('cache_write_long', used.cache_write_long_tokens),
        ('output', used.output_tokens - used.reasoning_tokens),
        ('reasoning', used.reasoning_tokens),
        ('unsplit', used.tokens - used.input_tokens - used.output_tokens)
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
        rules.base_list,
        rules.factor,
        1 as distance,
        rules.valid_from,
        rules.valid_to
    from rules

    union all

    select
        rules.price_list,
        further.base_list,
        rules.factor * further.factor,
        2 as distance,
        greatest(rules.valid_from, further.valid_from),
        least(rules.valid_to, further.valid_to)
    from rules
    inner join rules as further on rules.base_list = further.price_list
),

-- one row per hour, name, tier, size, kind and list that has a price: the first that counts
priced as materialized (
    select distinct on (
        named.usage_hour,
        named.priced_provider,
        named.priced_model,
        named.used_tier,
        named.bound,
        named.token_kind,
        named.price_list
    )
        named.*,
        prices.currency,
        prices.amount * sources.factor as amount
    from (
        select distinct
            kinds.usage_hour,
            kinds.priced_provider,
            kinds.priced_model,
            kinds.used_tier,
            kinds.bound,
            kinds.token_kind,
            kinds.price_list
        from kinds
    ) as named
    inner join sources
        on
            named.price_list = sources.price_list
            and named.usage_hour >= sources.valid_from
            and named.usage_hour < sources.valid_to
    inner join prices
        on
            sources.source_list = prices.price_list
            and named.priced_provider = prices.provider
            and named.priced_model = prices.model
            and named.token_kind = prices.token_kind
            and named.used_tier = prices.service_tier
            and named.bound >= prices.context_over
            and named.usage_hour >= prices.valid_from
            and named.usage_hour < prices.valid_to
    where prices.amount is not null
    order by
        named.usage_hour,
        named.priced_provider,
        named.priced_model,
        named.used_tier,
        named.bound,
        named.token_kind,
        named.price_list,
        sources.distance,
        prices.context_over desc
),

-- what both say, of any label: billed_tokens_are_those_of_daily compares these
said as (
    select
        costs.usage_date,
        costs.tenant_id,
        costs.provider,
        costs.model,
        costs.token_kind,
        costs.service_tier,
        costs.price_list,
        costs.is_billed,
        costs.currency,
        'mart' as sayer,
        costs.tokens::numeric as tokens,
        costs.cost,
        costs.unpriced_tokens::numeric as unpriced_tokens
    from daily_token_cost as costs
    where exists (select from build)

    union all

    select
        kinds.usage_date,
        kinds.tenant_id,
        kinds.used_provider,
        kinds.used_model,
        kinds.token_kind,
        kinds.used_tier,
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
            and kinds.used_tier = priced.used_tier
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
)

select
    compared.usage_date,
    compared.tenant_id,
    compared.provider,
    compared.model,
    compared.token_kind,
    compared.service_tier,
    compared.price_list,
    compared.is_billed,
    compared.currency,
    sums.of_what as sum_of,
    trim_scale(sums.mart_says) as mart_says,
    trim_scale(sums.raw_says) as raw_says,
    trim_scale(coalesce(sums.mart_says, 0) - coalesce(sums.raw_says, 0)) as difference
from compared
cross join lateral (
    values
    ('tokens', compared.tokens_of_mart, compared.tokens_of_raw),
    ('cost', compared.cost_of_mart, compared.cost_of_raw),
    ('unpriced_tokens', compared.unpriced_of_mart, compared.unpriced_of_raw)
) as sums (of_what, mart_says, raw_says)
where sums.mart_says is distinct from sums.raw_says
