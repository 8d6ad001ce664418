-- one row per kind and detail of what was refused, does not count, or is doubtful
select
    'refused' as kind,
    usage_event_rejections.reason as detail,
    count(*) as event_count
from token_tracking_raw.usage_event_rejections
group by usage_event_rejections.reason

union all

select
    'contradiction' as kind,
    'the key is known with another payload' as detail,
    count(*) as event_count
from token_tracking_raw.usage_event_conflicts
having count(*) > 0

union all

select
    'voided' as kind,
    usage_voids.reason as detail,
    count(*) as event_count
from token_tracking_raw.usage_voids
group by usage_voids.reason

union all

select
    'unknown label' as kind,
    unmapped_labels.label_kind || ' ' || unmapped_labels.label as detail,
    sum(unmapped_labels.event_count)::bigint as event_count
from token_tracking.unmapped_labels
group by unmapped_labels.label_kind, unmapped_labels.label

union all

select
    'unknown agent' as kind,
    usage_events.agent_id as detail,
    count(*) as event_count
from token_tracking.usage_events
where usage_events.attribution_rule = 'unknown_agent'
group by usage_events.agent_id

union all

select
    'arrived late' as kind,
    'two days after it was made' as detail,
    count(*) as event_count
from token_tracking_raw.usage_events
where usage_events.metadata ->> 'delivered' = 'late'
having count(*) > 0

order by kind, event_count desc, detail
