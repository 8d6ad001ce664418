{% test no_unmapped_labels(model) %}
{%- set changes = changes_to_compare([model]) -%}
select
    labels.label_kind,
    labels.label,
    sum(base.tokens) as tokens,
    sum(base.event_count) as event_count,
    min(base.usage_date) as first_used_on,
    max(base.usage_date) as last_used_on
from {{ model }} as base
cross join lateral (
    values
    ('token_type', base.unmapped_token_type),
    ('operation', base.unmapped_operation)
) as labels (label_kind, label)
where
    labels.label is not null
    and {{ is_compared('base.usage_hour', 'changes.usage_hour', changes) }}
group by
    labels.label_kind,
    labels.label
{% endtest %}
