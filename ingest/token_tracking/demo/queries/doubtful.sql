-- one row per kind and detail of what was refused, does not count, or is doubtful
select 'refused' as kind, usage_event_rejections.reason as detail, count(*) as event_count
from token_tracking_raw.usage_event_rejections
group by usage_event_rejections.reason

union all

select 'contradiction', 'the key is known with another payload', count(*)
from token_tracking_raw.usage_event_conflicts
having count(*) > 0

union all

select 'voided', usage_voids.reason, count(*)
from token_tracking_raw.usage_voids
group by usage_voids.reason

union all

select
    'unknown label', unmapped_labels.label_kind || ' ' || unmapped_labels.label,
    sum(unmapped_labels.event_count)::bigint
from token_tracking.unmapped_labels
group by unmapped_labels.label_kind, unmapped_labels.label

union all

select 'unknown agent', usage_events.agent_id, count(*)
from token_tracking.usage_events
where usage_events.attribution_rule = 'unknown_agent'
group by usage_events.agent_id

union all

select 'arrived late', 'two days after it was made', count(*)
from token_tracking_raw.usage_events
where usage_events.metadata ->> 'delivered' = 'late'
having count(*) > 0

order by kind, event_count desc, detail
