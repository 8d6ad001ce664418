{% test no_unmapped_labels(model) %}
{%- set changes = changes_to_compare([model], is_doubt=true) -%}
select
    labels.label_kind,
    labels.label,
    sum(base.tokens) as tokens,
    sum(base.event_count) as event_count,
    min(base.usage_date) as first_used_on,
    max(base.usage_date) as last_used_on
from {{ compared_groups(model, {'usage_hour': 'usage_hour', 'usage_date': 'usage_date'}, changes) }} as base
cross join lateral (
    values
    ('token_type', base.unmapped_token_type),
    ('operation', base.unmapped_operation)
) as labels (label_kind, label)
where labels.label is not null
group by
    labels.label_kind,
    labels.label
{% endtest %}
