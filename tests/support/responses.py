"""Responses in the providers' forms, and the usage that each of them reports."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from token_tracking import ResponseUsage


class Case(NamedTuple):
    """A response as JSON, and what `usage_of` returns for it."""

    response: dict[str, Any]
    usage: ResponseUsage


def used(
    provider: str | None,
    model: str | None,
    response_id: str | None,
    tokens: int,
    given: int | None = None,
    made: int | None = None,
    *,
    read: int | None = None,
    written: int | None = None,
    long: int | None = None,
    reasoning: int | None = None,
    tier: str | None = None,
    token_type: Literal["llm", "embedding"] = "llm",
    note: str | None = None,
) -> ResponseUsage:
    """Return the usage with the fields in the order of a response."""
    counts = (tokens, given, made, read, written, long, reasoning)
    return ResponseUsage(provider, model, response_id, tier, token_type, *counts, note)


def chat(usage: dict[str, Any] | None, **others: object) -> dict[str, Any]:
    """Return a chat completion of OpenAI's form."""
    message = {"role": "assistant", "content": "Hello", "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
        **others,
    }


def chunk(usage: dict[str, Any] | None, **others: object) -> dict[str, Any]:
    """Return the last chunk of a stream of OpenAI's form."""
    return chat(usage, object="chat.completion.chunk", choices=[], **others)


def message(usage: dict[str, Any], **others: object) -> dict[str, Any]:
    """Return a message of Anthropic's form."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
        **others,
    }


def generated(usage: dict[str, Any], **others: object) -> dict[str, Any]:
    """Return a response of Gemini's form."""
    content = {"role": "model", "parts": [{"text": "Hello"}]}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage,
        "modelVersion": "gemini-2.5-flash",
        "responseId": "resp-1",
        **others,
    }


def converse(usage: dict[str, Any], **others: object) -> dict[str, Any]:
    """Return a response of Bedrock Converse."""
    return {
        "ResponseMetadata": {"RequestId": "request-1", "HTTPStatusCode": 200},
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
        "stopReason": "end_turn",
        "usage": usage,
        "metrics": {"latencyMs": 250},
        **others,
    }


def responded(usage: dict[str, Any] | None, **others: object) -> dict[str, Any]:
    """Return a response of OpenAI's Responses API."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": "completed",
        "model": "gpt-5.4-2026-03-05",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
        **others,
    }


GPT, CLAUDE, GEMINI = "gpt-4o-2024-08-06", "claude-sonnet-4-5-20250929", "gemini-2.5-flash"

CHAT_USAGE = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "cache_write_tokens": 50, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 192,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 7,
    },
}
RESPONSES_USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {
        "cached_tokens": 600,
        "cache_write_tokens": 300,
        "cache_write_tokens_details": {"ttl_30m_tokens": 200, "ttl_12h_tokens": 100},
    },
    "output_tokens": 80,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 1080,
}
MESSAGE_USAGE = {
    "input_tokens": 40,
    "cache_read_input_tokens": 1000,
    "cache_creation_input_tokens": 300,
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 90,
    "output_tokens_details": {"thinking_tokens": 60},
    "service_tier": "standard",
}
GEMINI_USAGE = {
    "promptTokenCount": 500,
    "cachedContentTokenCount": 400,
    "toolUsePromptTokenCount": 20,
    "candidatesTokenCount": 30,
    "thoughtsTokenCount": 70,
    "totalTokenCount": 620,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 500}],
}
CONVERSE_USAGE = {
    "inputTokens": 40,
    "outputTokens": 90,
    "totalTokens": 1430,
    "cacheReadInputTokens": 1000,
    "cacheWriteInputTokens": 300,
    "cacheDetails": [{"ttl": "5m", "inputTokens": 200}, {"ttl": "1h", "inputTokens": 100}],
}
MISTRAL_USAGE = {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80}
COHERE_USAGE = {
    "billed_units": {"input_tokens": 9.0, "output_tokens": 4.0},
    "tokens": {"input_tokens": 204.0, "output_tokens": 6.0},
    "cached_tokens": 128.0,
}

# What each provider counts as what: one response a provider, with every kind that it tells.
FORMS = {
    "OpenAI chat": Case(
        chat(CHAT_USAGE, service_tier="flex"),
        used(
            "openai",
            GPT,
            "chatcmpl-1",
            2306,
            2006,
            300,
            read=1920,
            written=50,
            reasoning=192,
            tier="flex",
        ),
    ),
    "OpenAI chat, last chunk": Case(
        chunk(CHAT_USAGE, service_tier="default"),
        used("openai", GPT, "chatcmpl-1", 2306, 2006, 300, read=1920, written=50, reasoning=192),
    ),
    "OpenAI responses": Case(
        responded(RESPONSES_USAGE, service_tier="priority"),
        used(
            "openai",
            "gpt-5.4-2026-03-05",
            "resp_1",
            1080,
            1000,
            80,
            read=600,
            written=300,
            long=100,
            reasoning=64,
            tier="priority",
        ),
    ),
    "OpenAI responses, last event": Case(
        {
            "type": "response.incomplete",
            "sequence_number": 9,
            "response": responded(RESPONSES_USAGE, status="incomplete"),
        },
        used(
            "openai",
            "gpt-5.4-2026-03-05",
            "resp_1",
            1080,
            1000,
            80,
            read=600,
            written=300,
            long=100,
            reasoning=64,
        ),
    ),
    "OpenAI embeddings": Case(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        used("openai", "text-embedding-3-small", None, 8, 8, 0, token_type="embedding"),
    ),
    "OpenAI batch": Case(
        {
            "id": "batch_1",
            "object": "batch",
            "status": "completed",
            "model": "gpt-5.4-2026-03-05",
            "usage": RESPONSES_USAGE,
        },
        used(
            "openai",
            "gpt-5.4-2026-03-05",
            "batch_1",
            1080,
            1000,
            80,
            read=600,
            written=300,
            long=100,
            reasoning=64,
            tier="batch",
        ),
    ),
    "OpenAI transcription": Case(
        {
            "text": "Hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
                "output_tokens": 101,
                "total_tokens": 115,
            },
        },
        used("openai", None, None, 115, 14, 101),
    ),
    "OpenAI images": Case(
        {
            "created": 1_790_000_000,
            "data": [{"b64_json": ""}],
            "usage": {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 4160,
                "total_tokens": 4210,
            },
        },
        used("openai", None, None, 4210, 50, 4160),
    ),
    "OpenAI realtime, last event": Case(
        {
            "type": "response.done",
            "event_id": "event_1",
            "response": {
                "object": "realtime.response",
                "id": "resp_1",
                "usage": {
                    "input_tokens": 120,
                    "input_token_details": {
                        "text_tokens": 100,
                        "audio_tokens": 20,
                        "cached_tokens": 64,
                        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0},
                    },
                    "output_tokens": 30,
                    "output_token_details": {"text_tokens": 10, "audio_tokens": 20},
                    "total_tokens": 150,
                },
            },
        },
        used("openai", None, "resp_1", 150, 120, 30, read=64),
    ),
    "Azure OpenAI": Case(
        chat(CHAT_USAGE, prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
        used(
            "azure.ai.openai",
            GPT,
            "chatcmpl-1",
            2306,
            2006,
            300,
            read=1920,
            written=50,
            reasoning=192,
        ),
    ),
    "Groq": Case(
        chat(
            {**MISTRAL_USAGE, "prompt_tokens_details": {"cached_tokens": 48}, "queue_time": 0.1},
            x_groq={"id": "req_1"},
            service_tier="on_demand",
            model="openai/gpt-oss-120b",
        ),
        used("groq", "openai/gpt-oss-120b", "chatcmpl-1", 80, 60, 20, read=48),
    ),
    "Groq, last chunk": Case(
        chunk(None, x_groq={"id": "req_1", "usage": MISTRAL_USAGE}, model="openai/gpt-oss-120b"),
        used("groq", "openai/gpt-oss-120b", "chatcmpl-1", 80, 60, 20),
    ),
    "vLLM": Case(
        chat({**MISTRAL_USAGE, "prompt_tokens_details": None}, model="my/model", service_tier=None),
        used("openai", "my/model", "chatcmpl-1", 80, 60, 20),
    ),
    "DeepSeek": Case(
        chat(
            {**MISTRAL_USAGE, "prompt_cache_hit_tokens": 32, "prompt_cache_miss_tokens": 28},
            model="deepseek-chat",
        ),
        used("deepseek", "deepseek-chat", "chatcmpl-1", 80, 60, 20, read=32),
    ),
    "Anthropic": Case(
        message(MESSAGE_USAGE),
        used(
            "anthropic",
            CLAUDE,
            "msg_01",
            1430,
            1340,
            90,
            read=1000,
            written=300,
            long=100,
            reasoning=60,
        ),
    ),
    "Anthropic, fast": Case(
        message({**MESSAGE_USAGE, "speed": "fast"}),
        used(
            "anthropic",
            CLAUDE,
            "msg_01",
            1430,
            1340,
            90,
            read=1000,
            written=300,
            long=100,
            reasoning=60,
            tier="fast",
        ),
    ),
    "Anthropic on Bedrock": Case(
        message(MESSAGE_USAGE, id="msg_bdrk_01"),
        used(
            "aws.bedrock",
            CLAUDE,
            "msg_bdrk_01",
            1430,
            1340,
            90,
            read=1000,
            written=300,
            long=100,
            reasoning=60,
        ),
    ),
    "Gemini": Case(
        generated(GEMINI_USAGE),
        used("gcp.gemini", GEMINI, "resp-1", 620, 520, 100, read=400, written=0, reasoning=70),
    ),
    "Vertex AI": Case(
        generated({**GEMINI_USAGE, "trafficType": "ON_DEMAND_PRIORITY"}),
        used(
            "gcp.vertex_ai",
            GEMINI,
            "resp-1",
            620,
            520,
            100,
            read=400,
            written=0,
            reasoning=70,
            tier="priority",
        ),
    ),
    "Gemini embeddings": Case(
        {
            "embeddings": [{"values": [0.5]}],
            "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8},
        },
        used("gcp.gemini", None, None, 8, 8, 0, written=0, token_type="embedding"),
    ),
    "Gemini, live session": Case(
        {"usageMetadata": {"promptTokenCount": 8, "responseTokenCount": 5, "totalTokenCount": 13}},
        used("gcp.gemini", None, None, 13, 8, 5, written=0),
    ),
    "Bedrock Converse": Case(
        converse(CONVERSE_USAGE, serviceTier={"type": "flex"}),
        used(
            "aws.bedrock",
            None,
            "request-1",
            1430,
            1340,
            90,
            read=1000,
            written=300,
            long=100,
            tier="flex",
        ),
    ),
    "Bedrock ConverseStream, metadata": Case(
        {"metadata": {"usage": CONVERSE_USAGE, "performanceConfig": {"latency": "optimized"}}},
        used(
            "aws.bedrock",
            None,
            None,
            1430,
            1340,
            90,
            read=1000,
            written=300,
            long=100,
            tier="optimized",
        ),
    ),
    "Cohere v2": Case(
        {
            "id": "c14c80c3",
            "finish_reason": "COMPLETE",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
            "usage": COHERE_USAGE,
        },
        used("cohere", None, "c14c80c3", 13, 9, 4),
    ),
    "Cohere v2, not billed": Case(
        {"id": "c14c80c3", "usage": {"tokens": {"input_tokens": 204.0, "output_tokens": 6.0}}},
        used("cohere", None, "c14c80c3", 210, 204, 6),
    ),
    "Cohere v2, last event": Case(
        {
            "type": "message-end",
            "id": "c14c80c3",
            "delta": {"finish_reason": "COMPLETE", "usage": COHERE_USAGE},
        },
        used("cohere", None, "c14c80c3", 13, 9, 4),
    ),
    "Cohere v1": Case(
        {
            "text": "Hello",
            "generation_id": "g1",
            "response_id": "r1",
            "meta": {"billed_units": {"input_tokens": 9, "output_tokens": 4}},
        },
        used("cohere", None, "r1", 13, 9, 4),
    ),
    "Cohere v1, last event": Case(
        {
            "event_type": "stream-end",
            "response": {
                "generation_id": "g1",
                "meta": {"billed_units": {"input_tokens": 9.0, "output_tokens": 4.0}},
            },
        },
        used("cohere", None, "g1", 13, 9, 4),
    ),
    "Cohere embeddings": Case(
        {
            "id": "e1",
            "embeddings": {"float": [[0.5]]},
            "texts": ["Hello"],
            "meta": {"billed_units": {"input_tokens": 2}},
        },
        used("cohere", None, "e1", 2, 2, 0, token_type="embedding"),
    ),
    "Ollama chat": Case(
        {
            "model": "llama3.3",
            "created_at": "2026-11-30T00:00:00Z",
            "message": {"role": "assistant", "content": "Hello"},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 26,
            "prompt_eval_cached_count": 16,
            "eval_count": 298,
        },
        used("ollama", "llama3.3", None, 324, 26, 298, read=16),
    ),
    "Ollama embed": Case(
        {"model": "nomic-embed-text", "embeddings": [[0.5]], "prompt_eval_count": 8},
        used("ollama", "nomic-embed-text", None, 8, 8, 0, token_type="embedding"),
    ),
    "LangChain": Case(
        {
            "content": "Hello",
            "type": "ai",
            "id": "lc_run--1",
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 240,
                "total_tokens": 590,
                "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
                "output_token_details": {"audio": 0, "reasoning": 200},
            },
            "response_metadata": {
                "model_name": GPT,
                "model_provider": "openai",
                "id": "chatcmpl-1",
            },
        },
        used("openai", GPT, "chatcmpl-1", 590, 350, 240, read=100, written=200, reasoning=200),
    ),
    "OpenTelemetry": Case(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.request.model": "claude-sonnet-4-5",
            "gen_ai.response.model": CLAUDE,
            "gen_ai.response.id": "msg_01",
            "gen_ai.usage.input_tokens": 1340,
            "gen_ai.usage.output_tokens": 90,
            "gen_ai.usage.cache_read.input_tokens": 1000,
            "gen_ai.usage.cache_write.input_tokens": 300,
            "gen_ai.usage.reasoning.output_tokens": 60,
        },
        used("anthropic", CLAUDE, "msg_01", 1430, 1340, 90, read=1000, written=300, reasoning=60),
    ),
    "LangChain, other names": Case(
        {
            "id": "lc_run--1",
            "usage_metadata": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
            "response_metadata": {"model": "llama3.3", "provider": "ollama"},
        },
        used("ollama", "llama3.3", "lc_run--1", 7, 5, 2),
    ),
    "OpenTelemetry span": Case(
        {
            "name": "chat claude-sonnet-4-5",
            "kind": "SpanKind.CLIENT",
            "attributes": {
                "gen_ai.operation.name": "chat",
                "gen_ai.response.model": CLAUDE,
                "gen_ai.usage.input_tokens": 1340,
                "gen_ai.usage.output_tokens": 90,
            },
        },
        used(None, CLAUDE, None, 1430, 1340, 90),
    ),
    "OpenTelemetry embeddings": Case(
        {"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 8},
        used(None, None, None, 8, 8, 0, token_type="embedding"),
    ),
    "OpenTelemetry, old names": Case(
        {
            "gen_ai.system": "az.ai.openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.prompt_tokens": 20,
            "gen_ai.usage.completion_tokens": 5,
            "gen_ai.usage.cache_creation.input_tokens": 10,
            "gen_ai.openai.response.service_tier": "flex",
        },
        used("azure.ai.openai", "gpt-4o", None, 25, 20, 5, written=10, tier="flex"),
    ),
    "Sentry": Case(
        {
            "gen_ai.system": "openai",
            "gen_ai.response.model": GPT,
            "gen_ai.usage.input_tokens": 20,
            "gen_ai.usage.input_tokens.cached": 16,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.output_tokens.reasoning": 3,
            "gen_ai.usage.total_tokens": 25,
        },
        used("openai", GPT, None, 25, 20, 5, read=16, reasoning=3),
    ),
    "OpenInference": Case(
        {
            "openinference.span.kind": "LLM",
            "llm.provider": "openai",
            "llm.model_name": GPT,
            "llm.token_count.prompt": 20,
            "llm.token_count.completion": 5,
            "llm.token_count.total": 25,
            "llm.token_count.prompt_details.cache_read": 16,
            "llm.token_count.completion_details.reasoning": 3,
        },
        used("openai", GPT, None, 25, 20, 5, read=16, reasoning=3),
    ),
    "OpenInference embeddings": Case(
        {
            "openinference.span.kind": "EMBEDDING",
            "embedding.model_name": "text-embedding-3-small",
            "llm.token_count.prompt": 8,
            "llm.token_count.total": 8,
        },
        used(None, "text-embedding-3-small", None, 8, 8, 0, token_type="embedding"),
    ),
}
