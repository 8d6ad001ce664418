-- No CTE: PostgreSQL flattens no view that has one, and could not look rows up in it.
select
    events.tenant_id as requester_tenant_id,
    events.idempotency_key,
    events.agent_id,
    events.conversation_id,
    events.collection_id,
    events.token_type as token_type_label,
    events.operation as operation_label,
    coalesce(events.model, 'unknown') as model,
    events.tokens,
    events.input_tokens,
    events.output_tokens,
    events.metadata,
    events.occurred_at,
    events.recorded_at,
    events.ingest_xid,
    coalesce(events.provider, 'unknown') as provider,
    coalesce(events.service_tier, 'standard') as service_tier,
    events.cache_read_tokens,
    events.cache_write_tokens,
    events.cache_write_long_tokens,
    events.reasoning_tokens
from {{ source('token_tracking_raw', 'usage_events') }} as events
