{% macro billed_events(usage_events, periods) -%}
    {#- With the caller's rights, so that it shows nobody more than the views that it reads. Its body is a
        text: PostgreSQL puts it into the caller's query, where the planner knows the payer and the times,
        and neither view is kept from being built again. A view that computes the payer has to read
        everybody's events; here the conditions are on columns that have an index. -#}
    {%- set events = usage_events.include(database=false) -%}
    {%- set name = periods.include(database=false, identifier=false) ~ '.billed_events' -%}
    {%- set function = name ~ '(text, timestamptz, timestamptz)' -%}
    {%- set described = graph.nodes['model.token_tracking.usage_events'] if execute else model -%}
    {%- set columns = described.columns.keys() | list -%}
    {%- set body -%}
    select {{ 'events.' ~ (columns | join(', events.')) }}
    from {{ events }} as events
    where
        events.requester_tenant_id = p_tenant_id
        and events.tenant_id = p_tenant_id
        and events.occurred_at >= coalesce(p_from, '-infinity')
        and events.occurred_at < coalesce(p_to, 'infinity')

    union all

    select {{ 'of_agent.' ~ (columns | join(', of_agent.')) }}
    from {{ periods.include(database=false) }} as periods
    cross join lateral (
        select events.*
        from {{ events }} as events
        where
            events.agent_id = periods.agent_id
            and events.occurred_at >= greatest(periods.valid_from, p_from)
            and events.occurred_at < least(periods.valid_to, coalesce(p_to, 'infinity'))
        offset 0
    ) as of_agent
    where
        periods.owner_tenant_id = p_tenant_id  -- so is the payer of all that happened in the period
        and of_agent.requester_tenant_id <> p_tenant_id
    {%- endset -%}
    {%- set types = [] -%}
    {%- for column in columns -%}
        {%- do types.append(column ~ ' ' ~ events ~ '.' ~ column ~ '%type') -%}
    {%- endfor -%}
    {%- set mark = 'The events of usage_events that are billed to p_tenant_id, which occurred from p_from until'
        ~ ' before p_to; NULL is no bound. ' ~ local_md5(body ~ types) -%}
    do $build$
    begin
        if obj_description(to_regprocedure('{{ function }}'), 'pg_proc') is distinct from '{{ mark }}' then
            drop function if exists {{ function }};
            create function {{ name }}(
                p_tenant_id text, p_from timestamptz, p_to timestamptz
            )
            returns table ({{ types | join(', ') }})
            language sql stable parallel safe rows 100
            as $body$
                {{ body }}
            $body$;
            comment on function {{ function }} is '{{ mark }}';
        end if;
    end
    $build$
{%- endmacro %}
