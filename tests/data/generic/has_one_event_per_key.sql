{% test has_one_event_per_key(model, base) %}
{%- set changes = changes_to_compare([base]) -%}
{{ changes.mark }}
{%- set found -%}
    count(*) as found_events,
    1 as expected_events,
    sum(events.tokens) as found_tokens,
    min(events.recorded_at) as first_recorded_at,
    max(events.recorded_at) as last_recorded_at
{%- endset -%}
{%- if not changes.log %}
select
    events.requester_tenant_id,
    events.idempotency_key,
    {{ found }}
from {{ model }} as events
group by
    events.requester_tenant_id,
    events.idempotency_key
having count(*) > 1
{%- else %}
select
    keys.requester_tenant_id,
    keys.idempotency_key,
    with_key.*
from (
    select distinct
        new_events.requester_tenant_id,
        new_events.idempotency_key
    from {{ model }} as new_events
    where {{ is_new('new_events.ingest_xid', changes.snapshot) }}
) as keys
cross join lateral (
    select
    {{ found }}
    from {{ model }} as events
    where
        events.requester_tenant_id = keys.requester_tenant_id
        and events.idempotency_key = keys.idempotency_key
) as with_key
where with_key.found_events > 1
{%- endif %}
{% endtest %}
