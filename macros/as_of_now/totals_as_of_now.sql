{% macro totals_as_of_now(mart, periods, inputs) -%}
    {#- A mart's rows, and what is new since its build: exact for the reader's own snapshot. The function is
        in a comment, which the materialization turns into a statement of its own before the view's. -#}
    {%- set grain = periods.keys() | list + ['tenant_id', 'token_type', 'operation', 'model'] -%}
    /*before {{ create_since_build_function(mart, periods, inputs) }} end*/
    {%- set sums = ['tokens', 'input_tokens', 'output_tokens', 'event_count'] -%}
select
    {{ grain | join(',\n    ') }},
    {%- for column in sums %}
    sum({{ column }})::bigint as {{ column }}{{ "," if not loop.last }}
    {%- endfor %}
from (
    select {{ (grain + sums) | join(', ') }} from {{ mart }}
    union all
    select {{ (grain + sums) | join(', ') }} from {{ since_build_function(mart) }}()
) as counted
group by
    {{ grain | join(',\n    ') }}
having sum(event_count) > 0
{%- endmacro %}


{% macro since_build_function(mart) -%}
    "{{ target.schema }}".{{ mart.identifier }}_since_build
{%- endmacro %}


{% macro create_since_build_function(mart, periods, inputs) -%}
    {#- Owned by the transformer, for readers have no right to the raw tables: so it looks itself at what
        the reader may see of the mart. current_user is the owner here; the reader is whom the session
        has logged in as, or has changed to with SET ROLE, and no function in between is believed. -#}
    {%- set table = mart.include(database=false) -%}
    {%- set state = build_table('build_state', mart.schema) -%}
    {%- set base = inputs[-1] -%}
    {%- set grain = periods.keys() | list + ['tenant_id', 'token_type', 'operation', 'model'] -%}
    {%- set sums = ['tokens', 'input_tokens', 'output_tokens', 'event_count'] -%}
create or replace function {{ since_build_function(mart) }}()
returns table (
    {%- for period in periods %}
    {{ period }} {{ 'timestamptz' if period == 'usage_hour' else 'date' }},
    {%- endfor %}
    tenant_id text,
    token_type {{ enum_type('token_type') }},
    operation {{ enum_type('operation_type') }},
    model text,
    {%- for column in sums %}
    {{ column }} numeric{{ "," if not loop.last }}
    {%- endfor %}
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
set jit = off
as $function$
#variable_conflict use_column
declare
    reader constant text := case current_setting('role')
        when 'none' then session_user::text else current_setting('role')
    end;
    sees_all boolean;
    tenants text[];
    saved pg_snapshot;
begin
    if not has_table_privilege(reader, '{{ table }}', 'select') then
        raise insufficient_privilege using message = format('%s may not read {{ mart.identifier }}', reader);
    end if;
    select
        not mart.relrowsecurity
        or pg_has_role(reader, mart.relowner, 'usage')
        or exists (
            select from pg_roles where rolname = reader and (rolsuper or rolbypassrls)
        )
        or exists (
            select
            from pg_policy as policy
            cross join unnest(policy.polroles) as role (oid)
            where
                policy.polrelid = mart.oid
                and policy.polname = 'all_rows'
                and pg_has_role(reader, role.oid, 'usage')
        )
    into sees_all
    from pg_class as mart
    where mart.oid = '{{ table }}'::regclass;
    if not sees_all then
        tenants := {{ source('token_tracking_raw', 'tenant_readers').schema }}.tenants_of_reader();
    end if;

    -- Only a state of this very table, these inputs and these raw tables can be gone on from.
    select mart.snapshot
    into saved
    from {{ state }} as mart
    {%- for input in inputs %}
    {%- set reading = 'mart' if loop.first else 'input_' ~ (loop.index - 1) %}
    inner join {{ state }} as input_{{ loop.index }}
        on
            input_{{ loop.index }}.model = '{{ input.identifier }}'
            and {{ reading }}.fingerprint like '%, basis ' || input_{{ loop.index }}.basis
    {%- endfor %}
    where
        mart.model = '{{ mart.identifier }}'
        and mart.relation_oid = '{{ table }}'::regclass
        and mart.relation_file = pg_relation_filenode(mart.relation_oid)
        and mart.billing_timezone = '{{ var('billing_timezone') }}'
        and pg_snapshot_xmax(mart.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
        and input_{{ inputs | length }}.fingerprint like '%, ' || {{ environment_of_build(build_table('rollup_changes', base.schema)) }};

    if saved is null then
        return query execute $query$
            select {{ grain | join(', ') }}, -{{ sums | join(', -') }} from {{ mart }}
            where $1 or tenant_id = any($2)
            union all
            {{ summed_events(attributed_events(ref('stg_usage__events')), periods, sign=false) }}
        $query$ using sees_all, tenants;
        return;
    end if;
    return query execute $query$
        with

        -- of events that were counted: with a new void, or in the period of an agent's new owner
        corrected_keys as (
            select
                voids.requester_tenant_id,
                voids.idempotency_key
            from {{ ref('stg_usage__voids') }} as voids
            where {{ is_since('voids') }}

            union

            select
                of_agent.requester_tenant_id,
                of_agent.idempotency_key
            from (
                select distinct
                    owners.agent_id,
                    owners.valid_from
                from {{ ref('stg_usage__agent_owners') }} as owners
                where {{ is_since('owners') }}
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
                        (
                            select min(later.valid_from)
                            from {{ ref('stg_usage__agent_owners') }} as later
                            where
                                later.agent_id = instants.agent_id
                                and later.valid_from > instants.valid_from
                        ),
                        'infinity'
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
            where not ({{ is_since('of_key') }})
        ),

        counted as (
            select 1 as sign, as_of_now.* from (
                {{ attributed_events(
                    "(select events.* from " ~ ref('stg_usage__events') ~ " as events where "
                    ~ is_since('events') ~ " union all select corrected.* from corrected)"
                ) }}
            ) as as_of_now
            union all
            select -1 as sign, as_of_build.* from (
                {{ attributed_events('corrected', as_of='$4') }}
            ) as as_of_build
        )

        {{ summed_events('select * from counted', periods, sign=true) }}
    $query$ using sees_all, tenants, pg_snapshot_xmin(saved)::text::bigint, saved;
end
$function$
{%- endmacro %}


{% macro is_since(rows) -%}
    {{ rows }}.ingest_xid >= $3 and not pg_visible_in_snapshot({{ rows }}.ingest_xid::text::xid8, $4)
{%- endmacro %}


{% macro summed_events(query, periods, sign) -%}
    {%- set sign = 'events.sign * ' if sign else '' -%}
    select
        {%- for column, period in periods.items() %}
        {{ period }} as {{ column }},
        {%- endfor %}
        events.tenant_id,
        events.token_type,
        events.operation,
        events.model,
        sum({{ sign }}events.tokens)::numeric as tokens,
        coalesce(sum({{ sign }}events.input_tokens), 0)::numeric as input_tokens,
        coalesce(sum({{ sign }}events.output_tokens), 0)::numeric as output_tokens,
        {{ 'sum(events.sign)::numeric' if sign else 'count(*)::numeric' }} as event_count
    from ({{ query }}) as events
    where $1 or events.tenant_id = any($2)
    group by 1, 2, 3, 4, 5{{ ', 6' if periods | length == 2 }}
{%- endmacro %}
