-- What a provider's response says beyond two totals: who served the call, how, and which of its tokens
-- came from a cache, were written to one, or were reasoning. Null where not told, as in all events of
-- before: adding the columns rewrites nothing, and the procedures of before go on writing meanwhile.

alter table token_tracking_raw.usage_events
add column provider text collate "C",
add column service_tier text collate "C",
add column cache_read_tokens bigint,
add column cache_write_tokens bigint,
add column cache_write_long_tokens bigint,
add column reasoning_tokens bigint;

alter table token_tracking_raw.usage_event_conflicts
add column provider text collate "C",
add column service_tier text collate "C",
add column cache_read_tokens bigint,
add column cache_write_tokens bigint,
add column cache_write_long_tokens bigint,
add column reasoning_tokens bigint;

comment on column token_tracking_raw.usage_events.input_tokens is
'All prompt tokens, cached ones included; null where not told.';
comment on column token_tracking_raw.usage_events.output_tokens is
'All completion tokens, reasoning included; null where not told.';
comment on column token_tracking_raw.usage_events.provider is
'Who served the call, lower case without outer space, such as openai or aws.bedrock; null where not told.';
comment on column token_tracking_raw.usage_events.service_tier is
'How it was served, lower case without outer space, such as batch or priority; null is the standard.';
comment on column token_tracking_raw.usage_events.cache_read_tokens is
'Prompt tokens read from a cache, a part of input_tokens; null where not told.';
comment on column token_tracking_raw.usage_events.cache_write_tokens is
'Prompt tokens written to a cache, a part of input_tokens; null where not told.';
comment on column token_tracking_raw.usage_events.cache_write_long_tokens is
'Prompt tokens written to a cache that keeps them longer, a part of cache_write_tokens; null where not told.';
comment on column token_tracking_raw.usage_events.reasoning_tokens is
'Tokens of hidden reasoning, a part of output_tokens; null where not told.';
comment on column token_tracking_raw.usage_event_conflicts.payload_hash is
'sha256 over all that is compared, so that each different payload is kept once.';

-- A call of a version before that waits for this one goes on in its own body, which would record an event
-- without its kinds: without this function it fails, and the client sends the event again.
drop function if exists token_tracking_raw.usage_event_rows(jsonb);
