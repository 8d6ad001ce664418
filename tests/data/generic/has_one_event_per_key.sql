{% test has_one_event_per_key(model) %}
{%- set changes = changes_to_compare([model]) -%}
{{ changes.mark }}
{%- set recorded = source('token_tracking_raw', 'usage_events') -%}
{%- set found -%}
    count(*) as found_events,
    1 as expected_events,
    sum(events.tokens) as found_tokens,
    min(events.recorded_at) as first_recorded_at,
    max(events.recorded_at) as last_recorded_at
{%- endset -%}
{%- if not changes.log %}
select
    events.tenant_id as requester_tenant_id,
    events.idempotency_key,
    {{ found }}
from {{ recorded }} as events
group by
    events.tenant_id,
    events.idempotency_key
having count(*) > 1
{%- else %}
select
    keys.tenant_id as requester_tenant_id,
    keys.idempotency_key,
    with_key.*
from (
    select distinct
        counted.tenant_id,
        counted.idempotency_key
    from {{ compared_raw_events(changes) }} as counted
    -- look-ups in the index's order find its pages in the processor's cache
    order by
        counted.tenant_id,
        counted.idempotency_key
) as keys
cross join lateral (
    select
    {{ found }}
    from {{ recorded }} as events
    where
        events.tenant_id = keys.tenant_id
        and events.idempotency_key = keys.idempotency_key
) as with_key
where with_key.found_events > 1
{%- endif %}
{% endtest %}
