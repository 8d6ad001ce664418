{% macro recounted_events(base, changes, events=none, snapshot=none) -%}
    {#- Uses nothing of the models' own logic, whose mistakes would otherwise agree with themselves. -#}
    {%- set events = events or recounted_hours(source('token_tracking_raw', 'usage_events'), changes) -%}
    {%- set voids = source('token_tracking_raw', 'usage_voids') -%}
    {%- set owners = source('token_tracking_raw', 'agent_owners') -%}
    {%- set labels = {'token_type': 'token_types', 'operation': 'operations'} -%}
    with

    -- what the build saw: raw rows that came later are not compared
    build as (
        select
            seen.snapshot,
            pg_snapshot_xmin(seen.snapshot)::text::bigint as xmin
        from (
            {%- if snapshot %}
            {{ snapshot }}
            {%- else %}
            select build_state.snapshot
            from {{ build_table('build_state', base.schema) }} as build_state
            where build_state.model = '{{ base.identifier }}'
            {%- endif %}
        ) as seen
    ),

    recorded as (
        select
            events.tenant_id,
            events.agent_id,
            events.token_type,
            events.operation,
            events.model,
            events.tokens,
            events.input_tokens,
            events.output_tokens,
            events.occurred_at,
            events.provider,
            events.service_tier,
            events.cache_read_tokens,
            events.cache_write_tokens,
            events.cache_write_long_tokens,
            events.reasoning_tokens
        from {{ events }} as events
        cross join build
        where
            (
                -- true of nearly all events, without a look at the snapshot
                events.ingest_xid < build.xmin
                or pg_visible_in_snapshot(events.ingest_xid::text::xid8, build.snapshot)
            )
            and not exists (
                select 1
                from {{ voids }} as voids
                where
                    voids.tenant_id = events.tenant_id
                    and voids.idempotency_key = events.idempotency_key
                    and pg_visible_in_snapshot(voids.ingest_xid::text::xid8, build.snapshot)
                {%- if changes.log %}
                -- one lookup per event, where the planner would read all voids
                offset 0
                {%- endif %}
            )
    ),

    -- one row per agent and instant: its latest revision
    owners as (
        select distinct on (owners.agent_id, owners.valid_from)
            owners.agent_id,
            owners.valid_from,
            owners.owner_tenant_id
        from {{ owners }} as owners
        cross join build
        where
            pg_visible_in_snapshot(owners.ingest_xid::text::xid8, build.snapshot)
            {%- if changes.log %}
            and owners.agent_id = any(array(select distinct recorded.agent_id from recorded))
            {%- endif %}
        order by owners.agent_id, owners.valid_from, owners.revision desc
    ),

    periods as (
        select
            owners.agent_id,
            owners.owner_tenant_id,
            owners.valid_from,
            lead(owners.valid_from, 1, 'infinity') over (
                partition by owners.agent_id order by owners.valid_from
            ) as valid_to
        from owners
    )

    select
        attributed.*,
        {%- for kind in labels %}
        case when {{ kind }} = 'unknown' then {{ kind }}_label end as unmapped_{{ kind }}
        {{- "," if not loop.last }}
        {%- endfor %}
    from (
        select
            coalesce(periods.owner_tenant_id, recorded.tenant_id) as tenant_id,
            recorded.tenant_id as requester_tenant_id,
            recorded.agent_id,
            case
                when recorded.agent_id is null then 'requester'
                when periods.owner_tenant_id is not null then 'agent_owner'
                else 'unknown_agent'
            end as attribution_rule,
            {%- for kind, list in labels.items() %}
            {%- set known = "('" ~ var(list) | join("', '") ~ "')" %}
            recorded.{{ kind }} as {{ kind }}_label,
            case
                when recorded.{{ kind }} in {{ known }} then recorded.{{ kind }}
                when {{ kind }}_alias.label in {{ known }} then {{ kind }}_alias.label
                else 'unknown'
            end as {{ kind }},
            {%- endfor %}
            coalesce(recorded.model, 'unknown') as model,
            coalesce(recorded.provider, 'unknown') as provider,
            coalesce(recorded.service_tier, 'standard') as service_tier,
            coalesce((
                select max(bounds.bound)
                from unnest(array{{ var('context_bounds') }}::bigint[]) as bounds (bound)
                where bounds.bound < recorded.input_tokens
            ), 0) as context_over,
            recorded.tokens,
            coalesce(recorded.input_tokens, 0) as input_tokens,
            coalesce(recorded.output_tokens, 0) as output_tokens,
            coalesce(recorded.cache_read_tokens, 0) as cache_read_tokens,
            coalesce(recorded.cache_write_tokens, 0) as cache_write_tokens,
            coalesce(recorded.cache_write_long_tokens, 0) as cache_write_long_tokens,
            coalesce(recorded.reasoning_tokens, 0) as reasoning_tokens,
            1 as event_count,
            (
                recorded.occurred_at
                at time zone '{{ var('billing_timezone') | replace("'", "''") }}'
            )::date as usage_date,
            date_trunc('hour', recorded.occurred_at at time zone 'UTC') at time zone 'UTC'
                as usage_hour
        from recorded
        left join periods
            on
                recorded.agent_id = periods.agent_id
                and recorded.occurred_at >= periods.valid_from
                and recorded.occurred_at < periods.valid_to
        {%- for kind in labels %}
        left join {{ ref('label_aliases') }} as {{ kind }}_alias
            on
                {{ kind }}_alias.label_kind = '{{ kind }}'
                and recorded.{{ kind }} = {{ kind }}_alias.alias
        {%- endfor %}
    ) as attributed
{%- endmacro %}
