{% test no_conflicts(model) %}
select
    conflicts.tenant_id as requester_tenant_id,
    conflicts.idempotency_key,
    events.tokens as counted_tokens,
    conflicts.tokens as refused_tokens,
    events.recorded_at as counted_since,
    conflicts.recorded_at as refused_at
from {{ model }} as conflicts
left join {{ source('token_tracking_raw', 'usage_events') }} as events
    on
        conflicts.tenant_id = events.tenant_id
        and conflicts.idempotency_key = events.idempotency_key
where
    -- a void settles it: the key no longer counts
    not exists (
        select 1
        from {{ source('token_tracking_raw', 'usage_voids') }} as voids
        where
            voids.tenant_id = conflicts.tenant_id
            and voids.idempotency_key = conflicts.idempotency_key
    )
    {%- if 'full' not in config.get('tags', []) %}
    and conflicts.recorded_at > now() - interval '1 day'
    {%- endif %}
{% endtest %}
