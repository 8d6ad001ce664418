{% test has_one_event_per_key(model) %}
{%- set everything = compares_everything([model]) -%}
{%- set recorded = source('token_tracking_raw', 'usage_events') -%}
select
    events.tenant_id as requester_tenant_id,
    events.idempotency_key,
    count(*) as found_events,
    1 as expected_events,
    sum(events.tokens) as found_tokens,
    min(events.recorded_at) as first_recorded_at,
    max(events.recorded_at) as last_recorded_at
{%- if everything %}
from {{ recorded }} as events
{%- else %}
from (
    select distinct
        counted.tenant_id,
        counted.idempotency_key
    from {{ reconciled_events(model) }} as counted
) as keys
cross join lateral (
    select recorded.*
    from {{ recorded }} as recorded
    where
        recorded.tenant_id = keys.tenant_id
        and recorded.idempotency_key = keys.idempotency_key
    offset 0
) as events
{%- endif %}
group by
    events.tenant_id,
    events.idempotency_key
having count(*) > 1
{% endtest %}
