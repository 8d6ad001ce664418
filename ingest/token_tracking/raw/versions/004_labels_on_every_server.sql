-- Up to here PostgreSQL 15 and 16 recorded vector_search as ector_search: the procedures wrote a vertical tab
-- as \v, which is the letter v there. The events stay as they are: the seed label_aliases says what
-- such a label means, and from the moment of this version (schema_versions.applied_at) the procedures
-- know an event of before by that form of its label, too. What goes are conflicts that were none: kept
-- where a newer server, to which a dump was brought, compared the label with that form.

delete from token_tracking_raw.usage_event_conflicts as conflicts
using token_tracking_raw.usage_events as events
where
    conflicts.tenant_id = events.tenant_id
    and conflicts.idempotency_key = events.idempotency_key
    and (
        conflicts.tokens, conflicts.input_tokens, conflicts.output_tokens, conflicts.model, conflicts.agent_id
    ) is not distinct from (
        events.tokens, events.input_tokens, events.output_tokens, events.model, events.agent_id
    )
    and events.token_type in (conflicts.token_type, btrim(conflicts.token_type, 'v'))
    and events.operation in (conflicts.operation, btrim(conflicts.operation, 'v'));
