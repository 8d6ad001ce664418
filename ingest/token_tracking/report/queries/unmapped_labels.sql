-- one row per label, of all tenants and all time
select
    unmapped_labels.label_kind || ' ' || unmapped_labels.label as name,
    unmapped_labels.event_count,
    unmapped_labels.tokens
from unmapped_labels
order by unmapped_labels.tokens desc, name
