-- one row per agent, payer, requester and rule; a tenant's own report names no other
-- requester
select
    daily_agent_token_usage.agent_id as agent,
    daily_agent_token_usage.tenant_id as payer,
    requester.name as requester,
    daily_agent_token_usage.attribution_rule::text as rule,
    sum(daily_agent_token_usage.tokens)::bigint as tokens,
    sum(daily_agent_token_usage.event_count)::bigint as event_count
from daily_agent_token_usage
cross join lateral (
    select
        case
            when
                %(tenant)s::text is null
                or daily_agent_token_usage.requester_tenant_id = %(tenant)s
                then daily_agent_token_usage.requester_tenant_id
        end as name
) as requester
where
    daily_agent_token_usage.usage_date >= %(month)s
    and daily_agent_token_usage.usage_date < %(month_end)s
    and (%(tenant)s::text is null or daily_agent_token_usage.tenant_id = %(tenant)s)
group by
    daily_agent_token_usage.agent_id,
    daily_agent_token_usage.tenant_id,
    requester.name,
    daily_agent_token_usage.attribution_rule
order by tokens desc, agent, payer, requester
