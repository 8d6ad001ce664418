{% macro attributed_events(source, by_lookup=false, as_of=none) %}
    {#- By lookup, the planner joins nothing: few events are read, of which it expects many. -#}
with

events as (
    select source.*
    from {{ source }} as source
),

voids as (
    select * from {{ ref('stg_usage__voids') }}
    {%- if as_of %}
    where pg_visible_in_snapshot(ingest_xid::text::xid8, {{ as_of }})
    {%- endif %}
),

agent_owners as (
    select * from {{ ref('stg_usage__agent_owners') }}
    {%- if as_of %}
    where pg_visible_in_snapshot(ingest_xid::text::xid8, {{ as_of }})
    {%- endif %}
),

token_type_aliases as (
    select * from {{ ref('label_aliases') }}
    where label_kind = 'token_type'
),

operation_aliases as (
    select * from {{ ref('label_aliases') }}
    where label_kind = 'operation'
),

-- one row per counted event
final as (
    select
        coalesce(owners.owner_tenant_id, events.requester_tenant_id) as tenant_id,
        events.requester_tenant_id,
        events.idempotency_key,
        events.agent_id,
        events.conversation_id,
        events.collection_id,
        {{ typed_label(
            ['events.token_type_label', 'token_type_aliases.label'], 'token_type', 'token_types'
        ) }} as token_type,
        {{ typed_label(
            ['events.operation_label', 'operation_aliases.label'], 'operation_type', 'operations'
        ) }} as operation,
        events.model,
        case
            when events.agent_id is null then 'requester'
            when owners.owner_tenant_id is null then 'unknown_agent'
            else 'agent_owner'
        end::{{ enum_type('attribution_rule') }} as attribution_rule,
        events.token_type_label,
        events.operation_label,
        events.tokens,
        events.input_tokens,
        events.output_tokens,
        events.metadata,
        {{ billing_date('events.occurred_at') }} as usage_date,
        date_trunc('hour', events.occurred_at, 'UTC') as usage_hour,
        events.occurred_at,
        events.recorded_at,
        events.ingest_xid,
        events.provider,
        events.service_tier,
        events.cache_read_tokens,
        events.cache_write_tokens,
        events.cache_write_long_tokens,
        events.reasoning_tokens
    from events
    -- one lookup by primary key: the owner whose period holds the event, in its latest revision
    left join lateral (
        select agent_owners.owner_tenant_id
        from agent_owners
        where
            events.agent_id is not null
            and agent_owners.agent_id = events.agent_id
            and agent_owners.valid_from <= events.occurred_at
        order by agent_owners.valid_from desc, agent_owners.revision desc
        limit 1
    ) as owners on true
    {%- for kind, list in {'token_type': 'token_types', 'operation': 'operations'}.items() %}
    {%- if by_lookup %}
    left join lateral (
        select {{ kind }}_aliases.label
        from {{ kind }}_aliases
        where
            events.{{ kind }}_label not in ('{{ var(list) | join("', '") }}')
            and {{ kind }}_aliases.alias = events.{{ kind }}_label
        offset 0
    ) as {{ kind }}_aliases on true
    {%- else %}
    left join {{ kind }}_aliases
        on events.{{ kind }}_label = {{ kind }}_aliases.alias
    {%- endif %}
    {%- endfor %}
    where
        not exists (
            select 1
            from voids
            where
                voids.requester_tenant_id = events.requester_tenant_id
                and voids.idempotency_key = events.idempotency_key
            {%- if by_lookup %}
            offset 0
            {%- endif %}
        )
)

select * from final
{% endmacro %}
