{% macro recounted_costs(usage, costs) -%}
    {#- By consecutive periods, where the model looks up; from the raw tables alone, as the build of these costs
        saw them. -#}
    {%- set bounds = {
        'model_prices': ['price_list', 'provider', 'model', 'token_kind', 'service_tier', 'context_over'],
        'model_aliases': ['provider', 'alias'],
        'price_list_rules': ['price_list'],
        'tenant_price_lists': ['tenant_id'],
    } -%}
    with

    build as (
        select state.price_snapshot
        from {{ build_table('build_state', costs.schema) }} as state
        where state.model = '{{ costs.identifier }}'
    ),

    {%- for table, keys in bounds.items() %}

    {{ table }} as (
        select
            latest.*,
            lead(latest.valid_from, 1, 'infinity') over (
                partition by {{ keys | join(', ') }} order by latest.valid_from
            ) as valid_to
        from (
            select distinct on ({{ keys | join(', ') }}, rows.valid_from) rows.*
            from {{ source('token_tracking_raw', table) }} as rows
            cross join build
            where pg_visible_in_snapshot(rows.ingest_xid::text::xid8, build.price_snapshot)
            order by {{ keys | join(', ') }}, rows.valid_from, rows.revision desc
        ) as latest
    ),
    {%- endfor %}

    hours as (
        select
            usage.*,
            coalesce(model_aliases.priced_provider, usage.provider) as priced_provider,
            coalesce(model_aliases.priced_model, usage.model) as priced_model,
            coalesce(tenant_price_lists.price_list, 'list') as billed_list
        from (
            select
                usage_hour, usage_date, tenant_id, token_type, operation, provider, model, service_tier,
                context_over,
                sum(tokens) as tokens,
                sum(input_tokens) as input_tokens,
                sum(output_tokens) as output_tokens,
                sum(cache_read_tokens) as cache_read_tokens,
                sum(cache_write_tokens) as cache_write_tokens,
                sum(cache_write_long_tokens) as cache_write_long_tokens,
                sum(reasoning_tokens) as reasoning_tokens
            from {{ usage }} as one
            group by 1, 2, 3, 4, 5, 6, 7, 8, 9
        ) as usage
        left join model_aliases
            on
                usage.provider = model_aliases.provider
                and usage.model = model_aliases.alias
                and usage.usage_hour >= model_aliases.valid_from
                and usage.usage_hour < model_aliases.valid_to
        left join tenant_price_lists
            on
                usage.tenant_id = tenant_price_lists.tenant_id
                and usage.usage_hour >= tenant_price_lists.valid_from
                and usage.usage_hour < tenant_price_lists.valid_to
    ),

    kinds as (
        {%- for kind, tokens in {
            'input': 'input_tokens - (cache_read_tokens + cache_write_tokens)',
            'cache_read': 'cache_read_tokens',
            'cache_write': 'cache_write_tokens - cache_write_long_tokens',
            'cache_write_long': 'cache_write_long_tokens',
            'output': 'output_tokens - reasoning_tokens',
            'reasoning': 'reasoning_tokens',
            'unsplit': 'tokens - (input_tokens + output_tokens)',
        }.items() %}
        {{ "union all" if not loop.first }}
        select
            hours.*,
            '{{ kind }}' as token_kind,
            {{ tokens }} as kind_tokens
        from hours
        where {{ tokens }} > 0
        {%- endfor %}
    ),

    lists as (
        select distinct
            kinds.billed_list as price_list
        from kinds
        union
        select unnest({{ text_array(var('price_lists')) }})
    ),

    -- one row for each period of a list's own prices, of those of its rule, and of its rule's rule
    sources as (
        select
            lists.price_list,
            lists.price_list as source_list,
            1::numeric as factor,
            0 as place,
            '-infinity'::timestamptz as valid_from,
            'infinity'::timestamptz as valid_to
        from lists
        union all
        select
            rules.price_list,
            rules.base_list,
            rules.factor,
            1,
            rules.valid_from,
            rules.valid_to
        from price_list_rules as rules
        where rules.base_list is not null
        union all
        select
            rules.price_list,
            second_rules.base_list,
            rules.factor * second_rules.factor,
            2,
            greatest(rules.valid_from, second_rules.valid_from),
            least(rules.valid_to, second_rules.valid_to)
        from price_list_rules as rules
        inner join price_list_rules as second_rules
            on rules.base_list = second_rules.price_list
        where second_rules.base_list is not null
    ),

    -- one row per combination that prices depend on, list and price that may count: the first one does
    candidates as (
        select distinct on (
            named.priced_provider, named.priced_model, named.service_tier, named.context_over,
            named.usage_hour, named.token_kind, sources.price_list
        )
            named.*,
            sources.price_list,
            model_prices.currency,
            model_prices.amount * sources.factor as amount
        from (
            select distinct
                priced_provider, priced_model, service_tier, context_over, usage_hour, token_kind
            from kinds
        ) as named
        inner join model_prices
            on
                named.priced_provider = model_prices.provider
                and named.priced_model = model_prices.model
                and named.service_tier = model_prices.service_tier
                and named.token_kind = model_prices.token_kind
                and named.context_over >= model_prices.context_over
                and named.usage_hour >= model_prices.valid_from
                and named.usage_hour < model_prices.valid_to
                and model_prices.amount is not null
        inner join sources
            on
                model_prices.price_list = sources.source_list
                and named.usage_hour >= sources.valid_from
                and named.usage_hour < sources.valid_to
        order by
            named.priced_provider, named.priced_model, named.service_tier, named.context_over,
            named.usage_hour, named.token_kind, sources.price_list,
            sources.place, model_prices.context_over desc
    )

    select
        kinds.usage_date,
        kinds.tenant_id,
        kinds.token_type,
        kinds.operation,
        kinds.provider,
        kinds.model,
        kinds.token_kind,
        kinds.service_tier,
        lists.price_list,
        lists.price_list = kinds.billed_list as is_billed,
        candidates.currency,
        kinds.kind_tokens as tokens,
        coalesce(kinds.kind_tokens * candidates.amount * 0.000001, 0) as cost,
        case when candidates.amount is null then kinds.kind_tokens else 0 end as unpriced_tokens
    from kinds
    inner join lists
        on
            lists.price_list = kinds.billed_list
            or lists.price_list = any({{ text_array(var('price_lists')) }})
    left join candidates
        on
            kinds.priced_provider = candidates.priced_provider
            and kinds.priced_model = candidates.priced_model
            and kinds.service_tier = candidates.service_tier
            and kinds.context_over = candidates.context_over
            and kinds.usage_hour = candidates.usage_hour
            and kinds.token_kind = candidates.token_kind
            and lists.price_list = candidates.price_list
{%- endmacro %}
