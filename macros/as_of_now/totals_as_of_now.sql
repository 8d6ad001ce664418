{% macro totals_as_of_now(mart, periods, inputs) -%}
    {%- set grain = dict(periods, **{
        'tenant_id': 'events.tenant_id',
        'token_type': 'events.token_type',
        'operation': 'events.operation',
        'model': 'events.model',
    }) -%}
{{ usage_as_of_now(mart, grain, inputs, mart) }},

final as (
    select
        {%- for column in grain %}
        counted.{{ column }},
        {%- endfor %}
        {{ usage_sums('counted', 'counted.' ~ (grain | first)) }}
    from counted
    group by
        {{ grain.keys() | join(',\n        ') }}
    having sum(counted.event_count) <> 0
)

select * from final
{%- endmacro %}


{% macro costs_as_of_now(base, costs) -%}
    {#- The hours as of now at the prices of now: a price that is new since the build may count for any of them.
        So this reads the hours that the reader's conditions leave, and not the saved costs. -#}
    {%- set grain = {} -%}
    {%- for column in [
        'usage_hour', 'usage_date', 'tenant_id', 'token_type', 'operation', 'provider', 'model', 'service_tier',
    ] -%}
        {%- do grain.update({column: 'events.' ~ column}) -%}
    {%- endfor -%}
    {%- do grain.update({'context_over': context_over('events.input_tokens')}) -%}
{{ usage_as_of_now(base, grain, [], costs) }},

hours as (
    select
        {%- for column in grain %}
        counted.{{ column }},
        {%- endfor %}
        {{ usage_sums('counted', 'counted.usage_hour') }}
    from counted
    group by
        {{ grain.keys() | join(',\n        ') }}
),

rated as (
    {{ rated_usage('hours') }}
),

final as (
    select
        rated.usage_date,
        {{ cost_columns('rated') }},
        {{ cost_sums('rated', 'rated.usage_date') }}
    from rated
    where
        (select reader.sees_all from reader)
        or rated.is_billed
    group by
        usage_date,
        tenant_id,
        token_type,
        operation,
        provider,
        model,
        token_kind,
        service_tier,
        price_list,
        is_billed,
        currency
    having sum(rated.tokens) <> 0
)

select * from final
{%- endmacro %}


{% macro usage_as_of_now(mart, grain, inputs, protected) -%}
    {#- One statement, so one snapshot: the mart's rows, and what the reader's snapshot sees and the mart's
        own one did not. The view has its owner's rights, for readers have none to the raw tables: so it
        holds the reader's condition itself. Where the next build would count everything, so does the
        view. -#}
    {%- set state = build_table('build_state', mart.schema) -%}
    {%- set table = mart.include(database=false) ~ "" -%}
    {%- set names = grain.keys() | list + usage_numbers() -%}
    {%- set columns = names | join(', ') -%}
with

-- no row if nothing of the mart can be continued from
saved as materialized (
    select
        mart.snapshot,
        pg_snapshot_xmin(mart.snapshot)::text::bigint as first_xid
    from {{ state }} as mart
    {%- for input in inputs %}
    inner join {{ build_table('build_state', input.schema) }} as input_{{ loop.index }}
        on
            input_{{ loop.index }}.model = '{{ input.identifier }}'
            and {{ 'mart' if loop.first else 'input_' ~ loop.index0 }}.fingerprint
            like '%, basis ' || input_{{ loop.index }}.basis
    {%- endfor %}
    where
        mart.model = '{{ mart.identifier }}'
        and mart.relation_oid = '{{ table }}'::regclass
        and mart.relation_file = pg_relation_filenode(mart.relation_oid)
        and pg_snapshot_xmax(mart.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
        and mart.origin = {{ origin_of_totals() }}
),

reader as materialized (
    select
        {{ sees_all_rows(protected.include(database=false) ~ '') }} as sees_all,
        (
            select jsonb_object_agg(tenants.tenant_id, true)
            from unnest({{ tenants_of_current_user() }}) as tenants (tenant_id)
        ) as tenants
),

{{ corrected_since_build() }},

counted as (
    select {{ mart_columns(names) }}
    from {{ mart }} as mart
    where
        (select reader.sees_all from reader)
        and exists (select 1 from saved)

    union all

    select {{ mart_columns(names) }}
    from {{ mart }} as mart
    where
        (select not reader.sees_all from reader)
        and exists (select 1 from saved)
        and {{ is_tenant_of_current_user('mart.tenant_id') }}

    union all

    select {{ columns }}
    from {{ with_low_estimate(readable_usage(
        attributed_events(events_since_build(), by_lookup=true), grain
    ), 1) }} as since_build

    union all

    select {{ columns }}
    from {{ with_low_estimate(readable_usage(
        attributed_events('corrected', by_lookup=true, as_of='(select saved.snapshot from saved)'),
        grain, sign='-'
    ), 1) }} as counted_by_build

    union all

    select {{ columns }}
    from {{ with_low_estimate(readable_usage(
        "select * from (" ~ attributed_events(ref('stg_usage__events')) ~ ") as attributed offset 0",
        grain, only_if='not exists (select 1 from saved)'
    ), 4) }} as everything
)
{%- endmacro %}


{% macro mart_columns(names) -%}
    {#- A deferred mart has the enum types of its own schema. -#}
    {%- set types = {'token_type': 'token_type', 'operation': 'operation_type'} -%}
    {%- for name in names -%}
        mart.{{ name }}
        {%- if name in types and invocation_args_dict.get('defer') -%}
            ::text::{{ enum_type(types[name]) }} as {{ name }}
        {%- endif -%}
        {{ ", " if not loop.last }}
    {%- endfor -%}
{%- endmacro %}


{% macro sees_all_rows(table) -%}
    {#- By the policies of row_policies(): whoever they do not restrict, or let read all rows. -#}
    (
            select
                not protected.relrowsecurity
                or pg_has_role(current_user, protected.relowner, 'usage')
                or exists (
                    select 1 from pg_roles
                    where rolname = current_user and rolbypassrls
                )
                or exists (
                    select 1
                    from pg_policy as policy
                    cross join unnest(policy.polroles) as allowed (role)
                    where
                        policy.polrelid = protected.oid
                        and policy.polname = 'all_rows'
                        and pg_has_role(current_user, allowed.role, 'usage')
                )
            from pg_class as protected
            where protected.oid = '{{ table }}'::regclass
        )
{%- endmacro %}


{% macro with_low_estimate(query, levels) -%}
    {#- The planner takes an unknown limit for a tenth of the rows, and null is no limit. What it expects of
        the raw tables is far too much: it would compile the query, which takes longer than the query, and
        read whole tables to join them. A limit is also a fence: conditions of the reader's own are
        evaluated on what comes out. -#}
    {%- set ns = namespace(query=query) -%}
    {%- for level in range(levels) -%}
        {%- set ns.query -%}
(
        select * from {{ ns.query }} as level_{{ loop.index }}
        limit (select null::bigint)
    )
        {%- endset -%}
    {%- endfor -%}
    {{ ns.query }}
{%- endmacro %}


{% macro is_since_build(rows) -%}
    {#- The upper bound means nothing; the planner takes a range for 0.5 % of the rows, and not for a third. -#}
    {{ rows }}.ingest_xid >= (select saved.first_xid from saved)
    and {{ rows }}.ingest_xid <= (select 9223372036854775807)
    and not pg_visible_in_snapshot({{ rows }}.ingest_xid::text::xid8, (select saved.snapshot from saved))
{%- endmacro %}


{% macro rows_since_build(view) -%}
    {{ with_low_estimate(
        "(select raw_rows.* from " ~ view ~ " as raw_rows where " ~ is_since_build('raw_rows') ~ ")", 2
    ) }}
{%- endmacro %}


{% macro events_since_build() -%}
    (
        select new_events.*
        from {{ rows_since_build(ref('stg_usage__events')) }} as new_events
        union all
        select corrected.* from corrected
    )
{%- endmacro %}


{% macro corrected_since_build() -%}
    {#- Events that the mart's snapshot saw, and whose void, or owner of their time, it did not see. Not all of
        them count otherwise: each is taken out as it counted then, and added as it counts now. -#}
    corrected_keys as (
    select
        voids.requester_tenant_id,
        voids.idempotency_key
    from {{ rows_since_build(ref('stg_usage__voids')) }} as voids

    union

    select
        of_agent.requester_tenant_id,
        of_agent.idempotency_key
    from (
        select distinct
            owners.agent_id,
            owners.valid_from
        from {{ rows_since_build(ref('stg_usage__agent_owners')) }} as owners
    ) as instants
    cross join lateral (
        select
            events.requester_tenant_id,
            events.idempotency_key
        from {{ ref('stg_usage__events') }} as events
        where
            events.agent_id = instants.agent_id
            and events.occurred_at >= instants.valid_from
            and events.occurred_at < coalesce(
                {{ ownership_end(ref('stg_usage__agent_owners'), 'instants') }}, 'infinity'
            )
        offset 0
    ) as of_agent
),

corrected as materialized (
    select of_key.*
    from corrected_keys
    cross join lateral (
        select events.*
        from {{ ref('stg_usage__events') }} as events
        where
            events.requester_tenant_id = corrected_keys.requester_tenant_id
            and events.idempotency_key = corrected_keys.idempotency_key
        offset 0
    ) as of_key
    where not ({{ is_since_build('of_key') }})
)
{%- endmacro %}


{% macro readable_usage(events, grain, sign='', only_if='true') -%}
    {#- Rows of the mart's columns, one for each event of a payer whom the reader may see. -#}
    (
        select
            {%- for column, expression in grain.items() %}
            {{ expression }} as {{ column }},
            {%- endfor %}
            {%- for number in usage_numbers() %}
            {{ sign }}{{ '1' if number == 'event_count' else 'events.' ~ number }} as {{ number }}
            {{- "," if not loop.last }}
            {%- endfor %}
        from ({{ events }}) as events
        cross join reader
        where
            {{ only_if }}
            and (reader.sees_all or reader.tenants[events.tenant_id] is not null)
    )
{%- endmacro %}
