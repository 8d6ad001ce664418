{% macro rated_usage(usage, kinds=none, carried=[]) -%}
    {#- One row for each row of usage, kind of its tokens and price list: an hour's tokens of a kind have one
        price. Look-ups by key and not joins of periods, so that who reads one payer's day pays for that.
        Of an instant the highest revision counts, also where it says that there is no price. -#}
    {%- set kinds = kinds or token_kinds('usage') -%}
    select
        {%- for column in carried %}
        usage.{{ column }},
        {%- endfor %}
        usage.usage_hour,
        usage.usage_date,
        usage.tenant_id,
        usage.token_type,
        usage.operation,
        usage.provider,
        usage.model,
        usage.service_tier,
        usage.context_over,
        kinds.token_kind,
        lists.price_list,
        lists.is_billed,
        price.currency,
        kinds.tokens,
        price.amount
    from {{ usage }} as usage
    {{ lists_of_usage(built_price_lists()) }}
    {{ priced_name() }}
    cross join lateral (
        values
        {%- for kind, tokens in kinds.items() %}
        ('{{ kind }}', {{ tokens }}){{ "," if not loop.last }}
        {%- endfor %}
    ) as kinds (token_kind, tokens)
    {{ price_of_kind() }}
    where kinds.tokens <> 0
{%- endmacro %}


{% macro rated_hours(usage) -%}
    {#- The same as rated_usage(), for many rows at once: each price is looked up once, not for each payer. Who
        reads one payer's rows of a view would pay for the prices of all. -#}
    with

    -- whoever asked, and with which agent: the price is the same
    usage as (
        {%- set grain = [
            'usage_hour', 'usage_date', 'tenant_id', 'token_type', 'operation', 'provider', 'model',
            'service_tier', 'context_over',
        ] %}
        select
            {%- for column in grain %}
            base.{{ column }},
            {%- endfor %}
            {%- for number in ['tokens'] + token_parts() %}
            sum(base.{{ number }}) as {{ number }}{{ "," if not loop.last }}
            {%- endfor %}
        from {{ usage }} as base
        group by {{ grain | join(', ') }}
    ),

    listed as (
        select
            usage.*,
            lists.price_list,
            lists.is_billed
        from usage
        {{ lists_of_usage(text_array(var('price_lists'))) }}
    ),

    kinds as materialized (
        select
            listed.*,
            kinds.token_kind,
            kinds.kind_tokens
        from listed
        cross join lateral (
            values
            {%- for kind, tokens in token_kinds('listed').items() %}
            ('{{ kind }}', {{ tokens }}){{ "," if not loop.last }}
            {%- endfor %}
        ) as kinds (token_kind, kind_tokens)
        where kinds.kind_tokens <> 0
    ),

    prices as materialized (
        select
            usage.*,
            price.currency,
            price.amount
        from (
            select distinct
                kinds.usage_hour,
                kinds.provider,
                kinds.model,
                kinds.service_tier,
                kinds.context_over,
                kinds.price_list,
                kinds.token_kind
            from kinds
        ) as usage
        cross join lateral (select usage.price_list) as lists
        cross join lateral (select usage.token_kind) as kinds
        {{ priced_name() }}
        {{ price_of_kind() }}
    )

    select
        kinds.usage_hour,
        kinds.usage_date,
        kinds.tenant_id,
        kinds.token_type,
        kinds.operation,
        kinds.provider,
        kinds.model,
        kinds.service_tier,
        kinds.context_over,
        kinds.token_kind,
        kinds.price_list,
        kinds.is_billed,
        prices.currency,
        kinds.kind_tokens as tokens,
        prices.amount
    from kinds
    left join prices
        on
            kinds.usage_hour = prices.usage_hour
            and kinds.provider = prices.provider
            and kinds.model = prices.model
            and kinds.service_tier = prices.service_tier
            and kinds.context_over = prices.context_over
            and kinds.price_list = prices.price_list
            and kinds.token_kind = prices.token_kind
{%- endmacro %}


{% macro built_price_lists() -%}
    {#- The text of a view shows whoever connects what it was made with: so the names of lists are not in it. -#}
    coalesce(
                (
                    select state.price_lists
                    from {{ build_table('build_state') }} as state
                    where state.model = 'daily_token_cost'
                ),
                '{}'
            )
{%- endmacro %}


{% macro lists_of_usage(lists) -%}
    left join lateral (
        select assigned.price_list
        from {{ ref('stg_usage__tenant_price_lists') }} as assigned
        where
            assigned.tenant_id = usage.tenant_id
            and assigned.valid_from <= usage.usage_hour
        order by assigned.valid_from desc, assigned.revision desc
        limit 1
    ) as assigned on true
    cross join lateral (
        select
            every.price_list,
            every.price_list = coalesce(assigned.price_list, 'list') as is_billed
        from unnest({{ lists }}) as every (price_list)
        union all
        select
            coalesce(assigned.price_list, 'list'),
            true
        where coalesce(assigned.price_list, 'list') <> all ({{ lists }})
    ) as lists
{%- endmacro %}


{% macro priced_name() -%}
    left join lateral (
        {{ rule_of_list('lists.price_list') }}
    ) as rule on true
    left join lateral (
        {{ rule_of_list('rule.base_list') }}
    ) as second_rule on true
    left join lateral (
        select
            aliases.priced_provider,
            aliases.priced_model
        from {{ ref('stg_usage__model_aliases') }} as aliases
        where
            aliases.provider = usage.provider
            and aliases.alias = usage.model
            and aliases.valid_from <= usage.usage_hour
        order by aliases.valid_from desc, aliases.revision desc
        limit 1
    ) as named on true
{%- endmacro %}


{% macro price_of_kind() -%}
    left join lateral (
        select
            found.currency,
            found.amount * sources.factor as amount
        from (
            values
            (0, lists.price_list, 1::numeric),
            (1, rule.base_list, rule.factor),
            (2, second_rule.base_list, rule.factor * second_rule.factor)
        ) as sources (place, price_list, factor)
        cross join lateral (
            select distinct on (prices.context_over)
                prices.context_over,
                prices.currency,
                prices.amount
            from {{ ref('stg_usage__model_prices') }} as prices
            where
                prices.price_list = sources.price_list
                and prices.provider = coalesce(named.priced_provider, usage.provider)
                and prices.model = coalesce(named.priced_model, usage.model)
                and prices.token_kind = kinds.token_kind
                and prices.service_tier = usage.service_tier
                and prices.context_over <= usage.context_over
                and prices.valid_from <= usage.usage_hour
            order by prices.context_over desc, prices.valid_from desc, prices.revision desc
        ) as found
        where found.amount is not null
        order by sources.place, found.context_over desc
        limit 1
    ) as price on true
{%- endmacro %}


{% macro rule_of_list(price_list) -%}
        select
            rules.base_list,
            rules.factor
        from {{ ref('stg_usage__price_list_rules') }} as rules
        where
            rules.price_list = {{ price_list }}
            and rules.valid_from <= usage.usage_hour
        order by rules.valid_from desc, rules.revision desc
        limit 1
{%- endmacro %}


{% macro cost_columns(relation) -%}
    {#- A kind of tokens whose price has changed, or ended, has a row for each currency, and one without. -#}
    {{ relation }}.tenant_id,
        {{ relation }}.token_type,
        {{ relation }}.operation,
        {{ relation }}.provider,
        {{ relation }}.model,
        {{ relation }}.token_kind,
        {{ relation }}.service_tier,
        {{ relation }}.price_list,
        {{ relation }}.is_billed,
        {{ relation }}.currency
{%- endmacro %}


{% macro cost_sums(relation, period) -%}
    {#- Prices are per million: multiplied, for a division would round. -#}
    {{ checked_total('sum(' ~ relation ~ '.tokens)', relation ~ '.tenant_id', period) }} as tokens,
        trim_scale(coalesce(sum({{ relation }}.tokens * {{ relation }}.amount), 0) * 0.000001) as cost,
        coalesce(sum({{ relation }}.tokens) filter (where {{ relation }}.amount is null), 0)::bigint
            as unpriced_tokens
{%- endmacro %}


{% macro cost_of_row(relation) -%}
    {{ relation }}.tokens,
        trim_scale(coalesce({{ relation }}.tokens * {{ relation }}.amount, 0) * 0.000001) as cost,
        case when {{ relation }}.amount is null then {{ relation }}.tokens else 0 end
            as unpriced_tokens
{%- endmacro %}


{% macro summed_costs(relation, period) -%}
    {{ checked_total('sum(' ~ relation ~ '.tokens)', relation ~ '.tenant_id', period) }} as tokens,
        trim_scale(sum({{ relation }}.cost)) as cost,
        sum({{ relation }}.unpriced_tokens)::bigint as unpriced_tokens
{%- endmacro %}
