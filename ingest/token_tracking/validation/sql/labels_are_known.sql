select
    unmapped_labels.label_kind,
    unmapped_labels.label,
    unmapped_labels.tokens,
    unmapped_labels.event_count
from unmapped_labels
