-- one row per agent_id, payer, requester, attribution_rule: agents used by others than
-- the payer, or unowned
select
    daily_agent_token_usage.agent_id,
    daily_agent_token_usage.tenant_id,
    daily_agent_token_usage.requester_tenant_id,
    daily_agent_token_usage.attribution_rule::text as attribution_rule,
    min(daily_agent_token_usage.usage_date) as first_used_on,
    max(daily_agent_token_usage.usage_date) as last_used_on,
    sum(daily_agent_token_usage.tokens) as tokens,
    sum(daily_agent_token_usage.event_count) as event_count
from token_tracking.daily_agent_token_usage
where
    daily_agent_token_usage.tenant_id <> daily_agent_token_usage.requester_tenant_id
    or daily_agent_token_usage.attribution_rule = 'unknown_agent'
group by
    daily_agent_token_usage.agent_id,
    daily_agent_token_usage.tenant_id,
    daily_agent_token_usage.requester_tenant_id,
    daily_agent_token_usage.attribution_rule
order by daily_agent_token_usage.agent_id, first_used_on, tokens desc
