{% test no_rejections(model) %}
select
    rejections.reason,
    count(*) as rejected_payloads,
    min(rejections.recorded_at) as first_rejected_at,
    max(rejections.recorded_at) as last_rejected_at
from {{ model }} as rejections
{%- if 'full' not in config.get('tags', []) %}
where rejections.recorded_at > now() - interval '1 day'
{%- endif %}
group by rejections.reason
{% endtest %}
