{% macro price_tables() %}
    {#- The raw tables that costs are a function of, besides the base. -#}
    {{ return(['model_prices', 'model_aliases', 'price_list_rules', 'tenant_price_lists']) }}
{% endmacro %}


{% macro groups_of_new_prices(base, saved) -%}
    {#- Days and payers of the base's rows that a new row may price otherwise. A row decides until the next
        instant of its key, whichever row that belongs to. -#}
    {%- set prices = source('token_tracking_raw', 'model_prices') -%}
    {%- set aliases = source('token_tracking_raw', 'model_aliases') -%}
    {%- set rules = source('token_tracking_raw', 'price_list_rules') -%}
    {%- set assignments = source('token_tracking_raw', 'tenant_price_lists') -%}
    {%- set lists = text_array(var('price_lists') + ['list']) -%}
    with

    new_prices as (
        select distinct
            new_rows.price_list,
            new_rows.provider,
            new_rows.model,
            new_rows.valid_from,
            coalesce((
                select min(later.valid_from)
                from {{ prices }} as later
                where
                    later.price_list = new_rows.price_list
                    and later.provider = new_rows.provider
                    and later.model = new_rows.model
                    and later.token_kind = new_rows.token_kind
                    and later.service_tier = new_rows.service_tier
                    and later.context_over = new_rows.context_over
                    and later.valid_from > new_rows.valid_from
            ), 'infinity') as valid_to
        from {{ prices }} as new_rows
        where {{ is_new_price('new_rows', 'model_prices', saved) }}
    ),

    new_rules as (
        select distinct
            new_rows.price_list,
            new_rows.valid_from,
            coalesce((
                select min(later.valid_from)
                from {{ rules }} as later
                where
                    later.price_list = new_rows.price_list
                    and later.valid_from > new_rows.valid_from
            ), 'infinity') as valid_to
        from {{ rules }} as new_rows
        where {{ is_new_price('new_rows', 'price_list_rules', saved) }}
    ),

    changed_lists as (
        select new_prices.price_list from new_prices
        union
        select new_rules.price_list from new_rules
    ),

    -- the lists that take prices from a changed one, at whatever time: in two steps at most
    followers as (
        select
            changed_lists.price_list as changed_list,
            changed_lists.price_list
        from changed_lists
        union
        select
            changed_lists.price_list,
            rules.price_list
        from changed_lists
        inner join {{ rules }} as rules
            on changed_lists.price_list = rules.base_list
        union
        select
            changed_lists.price_list,
            second_rules.price_list
        from changed_lists
        inner join {{ rules }} as rules
            on changed_lists.price_list = rules.base_list
        inner join {{ rules }} as second_rules
            on rules.price_list = second_rules.base_list
    ),

    -- no payer where the list, or a follower of it, is one that everybody's usage is priced by
    payers as (
        select distinct
            followers.changed_list,
            assignments.tenant_id
        from followers
        inner join {{ assignments }} as assignments
            on followers.price_list = assignments.price_list
        where
            followers.changed_list not in (
                select everybodys.changed_list
                from followers as everybodys
                where everybodys.price_list = any({{ lists }})
            )
        union all
        select distinct
            followers.changed_list,
            null
        from followers
        where followers.price_list = any({{ lists }})
    ),

    -- one row for each span of time in which the price of a name, of a payer, or of both may differ
    spans as (
        select
            names.provider,
            names.model,
            payers.tenant_id,
            new_prices.valid_from,
            new_prices.valid_to
        from new_prices
        inner join payers
            on new_prices.price_list = payers.changed_list
        cross join lateral (
            select
                new_prices.provider,
                new_prices.model
            union
            select
                aliases.provider,
                aliases.alias
            from {{ aliases }} as aliases
            where
                aliases.priced_provider = new_prices.provider
                and aliases.priced_model = new_prices.model
        ) as names

        union all

        select
            new_rows.provider,
            new_rows.alias,
            null,
            new_rows.valid_from,
            coalesce((
                select min(later.valid_from)
                from {{ aliases }} as later
                where
                    later.provider = new_rows.provider
                    and later.alias = new_rows.alias
                    and later.valid_from > new_rows.valid_from
            ), 'infinity')
        from {{ aliases }} as new_rows
        where {{ is_new_price('new_rows', 'model_aliases', saved) }}

        union all

        select
            null,
            null,
            payers.tenant_id,
            new_rules.valid_from,
            new_rules.valid_to
        from new_rules
        inner join payers
            on new_rules.price_list = payers.changed_list

        union all

        select
            null,
            null,
            new_rows.tenant_id,
            new_rows.valid_from,
            coalesce((
                select min(later.valid_from)
                from {{ assignments }} as later
                where
                    later.tenant_id = new_rows.tenant_id
                    and later.valid_from > new_rows.valid_from
            ), 'infinity')
        from {{ assignments }} as new_rows
        where {{ is_new_price('new_rows', 'tenant_price_lists', saved) }}
    )

    {%- for of_name, of_payer in [(true, false), (true, true), (false, false), (false, true)] %}
    {{ "union" if not loop.first }}
    select
        base.usage_date,
        base.tenant_id
    from spans
    inner join {{ base }} as base
        on
            base.usage_hour >= spans.valid_from
            and base.usage_hour < spans.valid_to
            {%- if of_name %}
            and base.provider = spans.provider
            and base.model = spans.model
            {%- endif %}
            {%- if of_payer %}
            and base.tenant_id = spans.tenant_id
            {%- endif %}
    where
        spans.provider is {{ "not null" if of_name else "null" }}
        and spans.tenant_id is {{ "not null" if of_payer else "null" }}
    {%- endfor %}
{%- endmacro %}


{% macro is_new_price(rows, table, saved) -%}
    ({{ is_new(rows ~ '.ingest_xid', saved['price_snapshot']) }}
    or {{ is_beyond_saved_end(rows, table, saved) }})
{%- endmacro %}


{% macro price_fingerprint() %}
    {#- Tables that were restored or emptied have another file. -#}
    {% set query %}
        select concat_ws(
            ', '
            {%- for table in price_tables() %},
            'file ' || pg_relation_filenode('{{ source('token_tracking_raw', table).include(database=false) }}'::regclass),
            'view ' || md5(pg_get_viewdef('{{ ref('stg_usage__' ~ table).include(database=false) }}'::regclass))
            {%- endfor %}
        )
    {% endset %}
    {{ return(run_query(query).columns[0][0]) }}
{% endmacro %}
