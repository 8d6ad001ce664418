"""`usage_of`: what each form counts as what, public faults, and responses that contradict."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections import ChainMap
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.support import ROOT
from tests.support.responses import (
    CHAT_USAGE,
    CLAUDE,
    CONVERSE_USAGE,
    FORMS,
    GEMINI,
    GEMINI_USAGE,
    GPT,
    MESSAGE_USAGE,
    MISTRAL_USAGE,
    RESPONSES_USAGE,
    Case,
    chat,
    chunk,
    converse,
    generated,
    message,
    responded,
    used,
)
from token_tracking import InvalidUsageError, UsageNotFoundError, usage_of
from token_tracking.client.logs import speaker
from token_tracking.event.fields import MAX_TOKENS


def as_object(value: Any) -> Any:
    """Return JSON as plain objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(member) for name, member in value.items()})
    return [as_object(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_read(name: str):
    response, usage = FORMS[name]
    assert usage_of(response) == usage


@pytest.mark.parametrize(
    "name", [name for name in FORMS if not name.startswith(("Open", "Sentry")) or "OpenAI" in name]
)
def test_attributes_are_read_like_members(name: str):
    response, usage = FORMS[name]
    assert usage_of(as_object(response)) == usage


# Classes of faults that public tools had, with the right value.
FAULTS = {
    "an inclusive total and its cached subset are not added": Case(
        chat({**CHAT_USAGE, "cache_read_input_tokens": 1920, "cache_creation_input_tokens": 50}),
        used("openai", GPT, "chatcmpl-1", 2306, 2006, 300, read=1920, written=50, reasoning=192),
    ),
    "both spellings of a cache write are one": Case(
        chat(
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "total_tokens": 110,
                "prompt_tokens_details": {
                    "cache_write_tokens": 60,
                    "cache_creation_tokens": 60,
                    "cache_creation_token_details": {
                        "ephemeral_5m_input_tokens": 20,
                        "ephemeral_1h_input_tokens": 40,
                    },
                },
                "cache_creation_input_tokens": 60,
            }
        ),
        used("openai", GPT, "chatcmpl-1", 110, 100, 10, written=60, long=40),
    ),
    "Anthropic's input is exclusive": Case(
        message({"input_tokens": 3, "output_tokens": 7, "cache_read_input_tokens": 5000}),
        used("anthropic", CLAUDE, "msg_01", 5010, 5003, 7, read=5000),
    ),
    "Bedrock's input is exclusive": Case(
        converse({**CONVERSE_USAGE, "cacheDetails": []}),
        used("aws.bedrock", None, "request-1", 1430, 1340, 90, read=1000, written=300),
    ),
    "Bedrock's cache write inside the input contradicts its total": Case(
        converse(
            {
                "inputTokens": 400,
                "outputTokens": 90,
                "totalTokens": 490,
                "cacheWriteInputTokens": 300,
            }
        ),
        used(
            "aws.bedrock",
            None,
            "request-1",
            490,
            note="only the total is kept: input 700 + output 90 are not the total 490",
        ),
    ),
    "the last event of a stream is cumulative": Case(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {
                "input_tokens": 40,
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 300,
                "output_tokens": 90,
            },
        },
        used("anthropic", None, None, 1430, 1340, 90, read=1000, written=300),
    ),
    "a stream's last event without the input says so": Case(
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 90}},
        used(
            "anthropic",
            None,
            None,
            90,
            None,
            90,
            note="the response does not tell its input tokens",
        ),
    ),
    "a stream's last event without the input drops its parts": Case(
        {
            "type": "message_delta",
            "delta": {},
            "usage": {"cache_read_input_tokens": 1000, "output_tokens": 90},
        },
        used(
            "anthropic",
            None,
            None,
            90,
            None,
            90,
            note="the response does not tell its input tokens",
        ),
    ),
    "Bedrock's parts without the input are no input": Case(
        converse({"cacheReadInputTokens": 1000, "outputTokens": 90}),
        used(
            "aws.bedrock",
            None,
            "request-1",
            90,
            None,
            90,
            note="the response does not tell its input tokens",
        ),
    ),
    "Anthropic's cache writes by lifetime are its cache writes": Case(
        message(
            {
                "input_tokens": 40,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 200,
                    "ephemeral_1h_input_tokens": 100,
                },
                "output_tokens": 90,
            },
            id="msg_vrtx_01",
        ),
        used("gcp.vertex_ai", CLAUDE, "msg_vrtx_01", 430, 340, 90, written=300, long=100),
    ),
    "an inclusive total in Anthropic's names is not Anthropic's": Case(
        {
            "usage": {
                "input_tokens": 1340,
                "cache_read_input_tokens": 1000,
                "output_tokens": 90,
                "total_tokens": 1430,
            }
        },
        used("openai", None, None, 1430, 1340, 90, read=1000),
    ),
    "Anthropic's names with a total that leaves out the cache contradict": Case(
        {
            "usage": {
                "input_tokens": 40,
                "cache_creation_input_tokens": 300,
                "output_tokens": 90,
                "total_tokens": 130,
            }
        },
        used(
            "openai",
            None,
            None,
            130,
            note="only the total is kept: cache read 0 + cache write 300 are above the input 40",
        ),
    ),
    "Anthropic's usage is known by its names, whatever holds it": Case(
        {
            "type": "assistant",
            "usage": {"input_tokens": 40, "cache_read_input_tokens": 1000, "output_tokens": 90},
        },
        used("anthropic", None, None, 1130, 1040, 90, read=1000),
    ),
    "other servers' responses name the parts as Anthropic does": Case(
        responded(
            {
                "input_tokens": 1340,
                "input_tokens_details": {
                    "cache_read_input_tokens": 1000,
                    "cache_creation_input_tokens": 300,
                },
                "output_tokens": 90,
                "total_tokens": 1430,
            },
            model="sonar",
        ),
        used("openai", "sonar", "resp_1", 1430, 1340, 90, read=1000, written=300),
    ),
    "Anthropic's cache writes by lifetime are not above the write": Case(
        message(
            {
                **MESSAGE_USAGE,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 201,
                    "ephemeral_1h_input_tokens": 100,
                },
            }
        ),
        used(
            "anthropic",
            CLAUDE,
            "msg_01",
            1430,
            note="only the total is kept: cache writes of 201 (short) + 100 (long) are above cache"
            " write 300",
        ),
    ),
    "Bedrock's cache writes by lifetime are not above the write": Case(
        converse({**CONVERSE_USAGE, "cacheDetails": [{"ttl": "5m", "inputTokens": 301}]}),
        used(
            "aws.bedrock",
            None,
            "request-1",
            1430,
            note="only the total is kept: cache writes of 301 (short) + 0 (long) are above cache"
            " write 300",
        ),
    ),
    "OpenAI's cache writes by lifetime are not above the write": Case(
        responded(
            {
                **RESPONSES_USAGE,
                "input_tokens_details": {
                    "cache_write_tokens": 300,
                    "cache_write_tokens_details": {"ttl_30m_tokens": 201, "ttl_12h_tokens": 100},
                },
            }
        ),
        used(
            "openai",
            "gpt-5.4-2026-03-05",
            "resp_1",
            1080,
            note="only the total is kept: cache writes of 201 (short) + 100 (long) are above cache"
            " write 300",
        ),
    ),
    "LangChain's cache writes by lifetime are not above the write": Case(
        {
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 40,
                "input_token_details": {"cache_creation": 100, "ephemeral_5m_input_tokens": 120},
            }
        },
        used(
            None,
            None,
            None,
            390,
            note="only the total is kept: cache writes of 120 (short) + 0 (long) are above cache"
            " write 100",
        ),
    ),
    "LangChain's parts tell the tier": Case(
        {
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 40,
                "total_tokens": 390,
                "input_token_details": {"priority_cache_read": 100, "priority": 250},
                "output_token_details": {"priority_reasoning": 0, "priority": 40},
            }
        },
        used(None, None, None, 390, 350, 40, read=100, reasoning=0, tier="priority"),
    ),
    "LangChain's sum over two tiers cannot be split": Case(
        {
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 40,
                "total_tokens": 390,
                "input_token_details": {"cache_read": 50, "flex_cache_read": 100, "flex": 150},
            },
            "response_metadata": {"service_tier": "flex"},
        },
        used(
            None,
            None,
            None,
            390,
            tier="flex",
            note="only the total is kept: cache_read is told as 50 and as 100",
        ),
    ),
    "LiteLLM takes Perplexity's reasoning for a part of the output": Case(
        chat(
            {
                **MISTRAL_USAGE,
                "num_search_queries": 1,
                "completion_tokens_details": {"reasoning_tokens": 7},
            }
        ),
        used(
            "perplexity",
            GPT,
            "chatcmpl-1",
            80,
            60,
            20,
            note="not counted: citation and reasoning tokens, which stand beside the total",
        ),
    ),
    "a cache write only at the top level": Case(
        chat({**MISTRAL_USAGE, "cache_creation_input_tokens": 48}),
        used("openai", GPT, "chatcmpl-1", 80, 60, 20, written=48),
    ),
    "a long cache write without the write is dropped": Case(
        chat(
            {
                **MISTRAL_USAGE,
                "prompt_tokens_details": {"cache_write_tokens_details": {"ttl_12h_tokens": 6}},
            }
        ),
        used("openai", GPT, "chatcmpl-1", 80, 60, 20),
    ),
    "a total that is the output leaves no input": Case(
        generated({"candidatesTokenCount": 5, "totalTokenCount": 5}),
        used("gcp.gemini", GEMINI, "resp-1", 5, 0, 5, written=0),
    ),
    "reasoning in an output without input stays in it": Case(
        chat(
            {
                "completion_tokens": 5,
                "total_tokens": 10,
                "completion_tokens_details": {"reasoning_tokens": 5},
            }
        ),
        used(
            "openai",
            GPT,
            "chatcmpl-1",
            10,
            None,
            5,
            reasoning=5,
            note="the response does not tell its input tokens",
        ),
    ),
    "embeddings have no output, also where no total says so": Case(
        {"embeddings": [{"values": [0.5]}], "usageMetadata": {"promptTokenCount": 8}},
        used("gcp.gemini", None, None, 8, 8, 0, written=0, token_type="embedding"),
    ),
    "a total of OpenInference is told alone": Case(
        {"llm.token_count.total": 20},
        used(None, None, None, 20, note="the response tells only its total"),
    ),
    "a compatible server's last chunk has choices": Case(
        chat({**CHAT_USAGE}, object="chat.completion.chunk"),
        used("openai", GPT, "chatcmpl-1", 2306, 2006, 300, read=1920, written=50, reasoning=192),
    ),
    "Gemini's thoughts are output": Case(
        generated({"promptTokenCount": 10, "thoughtsTokenCount": 70, "totalTokenCount": 80}),
        used("gcp.gemini", GEMINI, "resp-1", 80, 10, 70, written=0, reasoning=70),
    ),
    "Gemini's thoughts inside the candidates contradict the total": Case(
        generated(
            {
                "promptTokenCount": 10,
                "candidatesTokenCount": 100,
                "thoughtsTokenCount": 70,
                "totalTokenCount": 110,
            }
        ),
        used(
            "gcp.gemini",
            GEMINI,
            "resp-1",
            110,
            note="only the total is kept: input 10 + output 170 are not the total 110",
        ),
    ),
    "Gemini omits zeros": Case(
        generated({"promptTokenCount": 10, "totalTokenCount": 10}),
        used("gcp.gemini", GEMINI, "resp-1", 10, 10, 0, written=0),
    ),
    "reasoning beside the output is added where the total has it": Case(
        chat(
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            model="grok-4",
        ),
        used("openai", "grok-4", "chatcmpl-1", 135, 32, 103, reasoning=94),
    ),
    "Anthropic's compaction is beside the totals": Case(
        message(
            {
                "input_tokens": 23_000,
                "output_tokens": 1000,
                "iterations": [
                    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
                    {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
                ],
            }
        ),
        used("anthropic", CLAUDE, "msg_01", 207_500, 203_000, 4500),
    ),
    "what Anthropic's compaction wrote to the cache is there for as long": Case(
        message(
            {**MESSAGE_USAGE, "iterations": [{**MESSAGE_USAGE, "type": "compaction"}]},
        ),
        used(
            "anthropic",
            CLAUDE,
            "msg_01",
            2860,
            2680,
            180,
            read=2000,
            written=600,
            long=200,
            reasoning=120,
        ),
    ),
    "Anthropic's advisor is another model": Case(
        message(
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "iterations": [
                    {"type": "message", "input_tokens": 10, "output_tokens": 5},
                    {"type": "advisor_message", "input_tokens": 900, "output_tokens": 50},
                ],
            }
        ),
        used(
            "anthropic",
            CLAUDE,
            "msg_01",
            15,
            10,
            5,
            note="not counted: the tokens of an advisor, which is another model",
        ),
    ),
    "LangChain's cache writes by lifetime are in no other part": Case(
        {
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 40,
                "total_tokens": 390,
                "input_token_details": {
                    "cache_creation": 0,
                    "cache_read": 50,
                    "ephemeral_5m_input_tokens": 120,
                    "ephemeral_1h_input_tokens": 80,
                },
            }
        },
        used(None, None, None, 390, 350, 40, read=50, written=200, long=80),
    ),
    "LangChain names the parts after OpenAI's tier": Case(
        {
            "usage_metadata": {
                "input_tokens": 350,
                "output_tokens": 40,
                "total_tokens": 390,
                "input_token_details": {
                    "flex_cache_read": 100,
                    "flex_cache_creation": 50,
                    "flex": 200,
                },
                "output_token_details": {"flex_reasoning": 30, "flex": 10},
            },
            "response_metadata": {"service_tier": "flex", "model_provider": "openai"},
        },
        used("openai", None, None, 390, 350, 40, read=100, written=50, reasoning=30, tier="flex"),
    ),
    "Ollama tells no input of a cached prompt": Case(
        {"model": "llama3.3", "done": True, "eval_count": 9},
        used(
            "ollama",
            "llama3.3",
            None,
            9,
            None,
            9,
            note="the response does not tell its input tokens",
        ),
    ),
    "two instrumentations of a call name its tokens twice": Case(
        {
            "gen_ai.usage.input_tokens": 20,
            "gen_ai.usage.prompt_tokens": 20,
            "llm.token_count.prompt": 20,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.completion_tokens": 5,
            "gen_ai.usage.cache_read.input_tokens": 16,
            "gen_ai.usage.cache_read_input_tokens": 16,
            "llm.usage.total_tokens": 25,
        },
        used(None, None, None, 25, 20, 5, read=16),
    ),
    "a span whose input leaves out the cache contradicts itself": Case(
        {
            "gen_ai.provider.name": "anthropic",
            "gen_ai.usage.input_tokens": 40,
            "gen_ai.usage.output_tokens": 90,
            "gen_ai.usage.cache_read.input_tokens": 1000,
        },
        used(
            "anthropic",
            None,
            None,
            130,
            note="only the total is kept: cache read 1000 + cache write 0 are above the input 40",
        ),
    ),
    "counts in the attributes of a cost are no tokens": Case(
        {
            "openinference.span.kind": "LLM",
            "llm.token_count.prompt": 20,
            "llm.token_count.completion": 5,
            "llm.cost.prompt_details.cache_read": 16,
            "llm.cost.total": 25,
            "gen_ai.usage.cost": 0.5,
        },
        used(None, None, None, 25, 20, 5),
    ),
    "OpenRouter's cost is no count": Case(
        chat(
            {
                **MISTRAL_USAGE,
                "cost": 0.95,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": 19},
                "prompt_tokens_details": {"cached_tokens": 48, "cache_write_tokens": 0},
            },
            provider="Anthropic",
            model="anthropic/claude-sonnet-4.5",
        ),
        used("openai", "anthropic/claude-sonnet-4.5", "chatcmpl-1", 80, 60, 20, read=48, written=0),
    ),
    "Perplexity's citations and reasoning stand beside the total": Case(
        chat(
            {
                "prompt_tokens": 33,
                "completion_tokens": 7163,
                "total_tokens": 7196,
                "citation_tokens": 9827,
                "num_search_queries": 18,
                "reasoning_tokens": 3997,
            },
            model="sonar-deep-research",
        ),
        used(
            "perplexity",
            "sonar-deep-research",
            "chatcmpl-1",
            7196,
            33,
            7163,
            note="not counted: citation and reasoning tokens, which stand beside the total",
        ),
    ),
    "Perplexity's searches are no tokens": Case(
        chat({**MISTRAL_USAGE, "num_search_queries": 1, "search_context_size": "low"}),
        used("perplexity", GPT, "chatcmpl-1", 80, 60, 20),
    ),
    "other servers tell cache and reasoning beside the totals that contain them": Case(
        chat({**MISTRAL_USAGE, "cached_tokens": 48, "reasoning_tokens": 15}),
        used("openai", GPT, "chatcmpl-1", 80, 60, 20, read=48, reasoning=15),
    ),
    "Ollama in OpenAI's form has ids that repeat": Case(
        chat(MISTRAL_USAGE, id="chatcmpl-815", system_fingerprint="fp_ollama", model="llama3.3"),
        used("ollama", "llama3.3", None, 80, 60, 20),
    ),
    "Amazon's own models spell the cache in another way": Case(
        {
            "usage": {
                "inputTokens": 40,
                "outputTokens": 90,
                "totalTokens": 1430,
                "cacheReadInputTokenCount": 1000,
                "cacheWriteInputTokenCount": 300,
            }
        },
        used("aws.bedrock", None, None, 1430, 1340, 90, read=1000, written=300),
    ),
    "Gemini's thoughts in OpenAI's form are only in the total": Case(
        chat({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 85}, model=GEMINI),
        used(
            "openai",
            GEMINI,
            "chatcmpl-1",
            85,
            note="only the total is kept: input 10 + output 5 are not the total 85",
        ),
    ),
    "details beside the totals are not added": Case(
        {
            "gen_ai.usage.input_tokens": 20,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.usage.details.input_tokens": 20,
            "gen_ai.usage.details.output_tokens": 5,
            "gen_ai.usage.details.cache_read_tokens": 16,
            "gen_ai.usage.cost": 0.5,
        },
        used(None, None, None, 25, 20, 5, read=16),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_public_faults_are_not_repeated(name: str):
    response, usage = FAULTS[name]
    assert usage_of(response) == usage


# What contradicts itself keeps its total.
CONTRADICTIONS = {
    "a total above the sum": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 20},
        20,
        "input 10 + output 5 are not the total 20",
    ),
    "a total below the sum": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 12},
        12,
        "input 10 + output 5 are not the total 12",
    ),
    "one whole above the total": (
        {"prompt_tokens": 10, "total_tokens": 9},
        9,
        "input 10 + output None are above the total 9",
    ),
    "more cached than input": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 11},
        },
        15,
        "cache read 11 + cache write 0 are above the input 10",
    ),
    "cache read and write above the input": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5},
        },
        15,
        "cache read 6 + cache write 5 are above the input 10",
    ),
    "a long write above the write": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {
                "cache_write_tokens": 5,
                "cache_write_tokens_details": {"ttl_12h_tokens": 6},
            },
        },
        15,
        "cache writes of 0 (short) + 6 (long) are above cache write 5",
    ),
    "short and long writes above the write": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {
                "cache_creation_tokens": 5,
                "cache_creation_token_details": {
                    "ephemeral_30m_input_tokens": 4,
                    "ephemeral_12h_input_tokens": 2,
                },
            },
        },
        15,
        "cache writes of 4 (short) + 2 (long) are above cache write 5",
    ),
    "more reasoning than output": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "completion_tokens_details": {"reasoning_tokens": 6},
        },
        15,
        "reasoning 6 is above the output 5",
    ),
    "reasoning in an output of zero": (
        {
            "prompt_tokens": 200,
            "total_tokens": 200,
            "completion_tokens_details": {"reasoning_tokens": 200},
        },
        200,
        "reasoning 200 is above the output 0",
    ),
    "cached tokens in an input of zero": (
        {
            "completion_tokens": 200,
            "total_tokens": 200,
            "prompt_tokens_details": {"cached_tokens": 5},
        },
        200,
        "cache read 5 + cache write 0 are above the input 0",
    ),
    "cached tokens told in two ways": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
            "cache_read_input_tokens": 8,
        },
        15,
        "cached_tokens is told as 0 and as 8",
    ),
    "cache writes told in two ways": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cache_write_tokens": 3, "cache_creation_tokens": 4},
        },
        15,
        "cache_write_tokens is told as 3 and as 4",
    ),
    "a negative count": (
        {"prompt_tokens": -10, "completion_tokens": 5, "total_tokens": 15},
        15,
        f"prompt_tokens is no integer from 0 to {MAX_TOKENS}",
    ),
    "a fraction": (
        {"prompt_tokens": 9.5, "completion_tokens": 5, "total_tokens": 15},
        15,
        f"prompt_tokens is no integer from 0 to {MAX_TOKENS}",
    ),
    "text": (
        {"prompt_tokens": 10, "completion_tokens": "secret", "total_tokens": 15},
        15,
        "completion_tokens is a string",
    ),
    "a total that is no count": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": True},
        15,
        "total_tokens is a boolean",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_keeps_only_the_total(name: str, caplog: pytest.LogCaptureFixture):
    reported, tokens, why = CONTRADICTIONS[name]
    note = f"only the total is kept: {why}"
    with caplog.at_level(logging.WARNING, "token_tracking.responses.usage"):
        usage = usage_of(chat(reported))
        speaker.finish()
    assert usage == used("openai", GPT, "chatcmpl-1", tokens, note=note)
    assert [record.getMessage() for record in caplog.records] == [
        f"usage of a response of openai ({GPT}): {note}"
    ]


def test_a_total_of_zero_counts_as_missing():
    usage = usage_of(chat({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}))
    assert usage == used("openai", GPT, "chatcmpl-1", 15, 10, 5)


def test_a_total_alone_is_kept():
    usage = usage_of({"gen_ai.usage.total_tokens": 7, "gen_ai.usage.input_tokens.cached": 0})
    assert usage[5:-1] == (7, None, None, None, None, None, None)
    assert usage.note == "the response tells only its total"


@pytest.mark.parametrize(
    "response",
    [
        None,
        "text",
        {},
        {"usage": {}},
        {"usage": "none"},
        [],
        chat(None),
        chunk(None),
        responded(None, status="in_progress"),
        {"usage": {"search_units": 1}},
        {"id": "r1", "results": [], "meta": {"billed_units": {"search_units": 1.0}}},
        chat({"prompt_tokens": "x", "completion_tokens": 5}),
        chat({"prompt_tokens": MAX_TOKENS, "completion_tokens": 1}),
        message({"input_tokens": 5, "cache_read_input_tokens": -1, "output_tokens": 5}),
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 20},
        {"gen_ai.operation.name": "invoke_workflow", "gen_ai.usage.input_tokens": 20},
        {"gen_ai.operation.name": "of_the_future", "gen_ai.usage.input_tokens": 20},
        {"agent_name": "planner", "gen_ai.usage.input_tokens": 20},
        {"openinference.span.kind": "AGENT", "llm.token_count.total": 20},
        {"openinference.span.kind": "CHAIN", "llm.token_count.total": 20},
        {
            "gen_ai.operation.name": "chat",
            "openinference.span.kind": "AGENT",
            "gen_ai.usage.input_tokens": 20,
        },
        b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
        [chat(CHAT_USAGE)],
        CHAT_USAGE,  # without the response
        MagicMock(),
        {"text": "Hello", "usage": {"type": "duration", "seconds": 27}},
        {"usage": {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}},
        {"usage": {"prompt_tokens": 2**70, "completion_tokens": 1}},
    ],
)
def test_no_usage_is_an_error_that_teaches(response: object):
    with pytest.raises(UsageNotFoundError) as caught:
        usage_of(response)
    told = str(caught.value)
    assert told.startswith(f"response ({type(response).__name__}): ")
    assert not re.search("prompt_tokens.:|Hello", told)
    assert "known forms are OpenAI chat completions" in told
    assert isinstance(caught.value, InvalidUsageError)
    assert not caught.value.retryable


def test_the_caller_supplies_what_is_not_told():
    told = usage_of(converse(CONVERSE_USAGE), model="anthropic.claude-sonnet-4-5-v1:0")
    assert told.model == "anthropic.claude-sonnet-4-5-v1:0"
    told = usage_of(chat(CHAT_USAGE), provider="vLLM", model="my/model")
    assert (told.provider, told.model) == ("vllm", "my/model")
    assert usage_of(chat(CHAT_USAGE), provider="azure").provider == "azure.ai.openai"


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        (None, None),
        ("auto", None),
        ("default", None),
        ("on_demand", None),
        ("Standard", None),
        ("flex", "flex"),
        ("Priority", "priority"),
        (7, None),
        ({"a": 1}, None),
    ],
)
def test_the_usual_tier_is_none(told: object, tier: str | None):
    assert usage_of(chat(CHAT_USAGE, service_tier=told)).service_tier == tier
    assert usage_of(message({**MESSAGE_USAGE, "service_tier": told})).service_tier == tier


@pytest.mark.parametrize("odd", ["", " ", "a\nb", "nul\0", "\ud800", "x" * 256, 7, ["gpt"], None])
def test_texts_that_an_event_cannot_have_are_left_out(odd: Any):
    usage = usage_of(chat(CHAT_USAGE, model=odd, service_tier=odd))
    assert (usage.model, usage.service_tier) == (None, None)
    usage = usage_of({"gen_ai.provider.name": odd, "gen_ai.usage.input_tokens": 1})
    assert usage.provider is None
    assert usage_of(chat(CHAT_USAGE), provider=odd, model=odd)[:2] == ("openai", GPT)


def test_text_that_lower_case_makes_too_long_is_left_out():
    long = "\u0130" * 200  # two characters each in lower case
    usage = usage_of(chat(CHAT_USAGE, service_tier=long), provider=long)
    assert (usage.provider, usage.service_tier) == ("openai", None)


@pytest.mark.parametrize("odd", ["", " ", "a\nb", "nul\0", "\ud800", 7, ["gpt"], None])
def test_an_id_that_is_no_text_is_left_out(odd: object):
    assert usage_of(chat(CHAT_USAGE, id=odd)).response_id is None


def test_an_id_may_be_long():
    """LiteLLM's and others' are above 255 characters; only their hash is stored."""
    assert usage_of(responded(RESPONSES_USAGE, id="resp_" + "x" * 400)).response_id is not None


def test_a_generation_holds_a_message():
    """As LangChain's callbacks have it."""
    response, usage = FORMS["LangChain"]
    assert usage_of({"text": "Hello", "message": response}) == usage


@pytest.mark.parametrize("name", ["citation_tokens", "reasoning_tokens"])
def test_each_count_beside_perplexitys_total_is_noted(name: str):
    usage = usage_of(chat({**MISTRAL_USAGE, "num_search_queries": 1, name: 7}))
    assert usage[:8] == ("perplexity", GPT, "chatcmpl-1", None, "llm", 80, 60, 20)
    assert usage.note is not None


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        ({"serviceTier": "FLEX"}, "flex"),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned_throughput"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"trafficType": "TRAFFIC_TYPE_UNSPECIFIED"}, None),
    ],
)
def test_googles_tiers(told: dict[str, str], tier: str | None):
    assert usage_of(generated({**GEMINI_USAGE, **told})).service_tier == tier


def test_a_span_says_why_it_does_not_count():
    with pytest.raises(UsageNotFoundError, match="repeats the usage of the calls below it"):
        usage_of({"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 20})


def test_the_span_of_a_model_call_may_name_its_agent():
    span = {**FORMS["OpenTelemetry"].response, "gen_ai.agent.name": "planner"}
    assert usage_of(span) == FORMS["OpenTelemetry"].usage


def test_an_attribute_that_raises_is_no_usage():
    class Broken:
        @property
        def usage(self) -> object:
            raise OSError

    with pytest.raises(UsageNotFoundError, match="reading it raised OSError") as caught:
        usage_of(Broken())
    assert isinstance(caught.value.__cause__, OSError)


def test_a_mock_tells_what_it_was_given():
    usage = MagicMock(prompt_tokens=9, completion_tokens=3, total_tokens=12)
    told = usage_of(MagicMock(usage=usage, model="gpt-4o"))
    assert (told.model, told.tokens, told.input_tokens) == ("gpt-4o", 12, None)
    assert told.note is not None
    assert "is a value of type MagicMock" in told.note


def test_data_classes_and_mappings_are_read():
    @dataclass
    class Usage:
        prompt_tokens: int = 9
        completion_tokens: int = 3

    @dataclass
    class Response:
        usage: object
        id: str = "r1"
        model: str = "m"

    expected = used("openai", "m", "r1", 12, 9, 3)
    assert usage_of(Response(Usage())) == expected
    assert usage_of(Response(ChainMap(vars(Usage())))) == expected


def test_zeros_of_protocol_buffers_contradict_nothing():
    """They have all members, also those that nobody set; the traffic's type is a number."""
    zeros = ("thoughts", "tool_use_prompt", "cached_content")
    counts = {"prompt": 10, "candidates": 5, "total": 15, **dict.fromkeys(zeros, 0)}
    usage = {f"{name}_token_count": count for name, count in counts.items()}
    told = usage_of(as_object({"usage_metadata": {**usage, "traffic_type": 1}}))
    assert told == used("gcp.vertex_ai", None, None, 15, 10, 5, read=0, written=0, reasoning=0)


@pytest.mark.parametrize("tier", ["default", None])
def test_bedrocks_latency_is_a_tier(tier: str | None):
    response = converse(
        CONVERSE_USAGE, serviceTier={"type": tier}, performanceConfig={"latency": "optimized"}
    )
    assert usage_of(response).service_tier == "optimized"


def test_no_providers_library_is_imported():
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        "import token_tracking\n"
        "token_tracking.usage_of({'usage': {'prompt_tokens': 1, 'completion_tokens': 1}})\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "              - set(sys.stdlib_module_names)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["token_tracking"]


def test_gemini_spells_both_ways():
    names = {
        "promptTokenCount": "prompt_token_count",
        "cachedContentTokenCount": "cached_content_token_count",
        "toolUsePromptTokenCount": "tool_use_prompt_token_count",
        "candidatesTokenCount": "candidates_token_count",
        "thoughtsTokenCount": "thoughts_token_count",
        "totalTokenCount": "total_token_count",
    }
    snake = {names[name]: GEMINI_USAGE[name] for name in names}
    told = {"usage_metadata": snake, "model_version": GEMINI, "response_id": "resp-1"}
    assert usage_of(told) == FORMS["Gemini"].usage


def test_the_documents_example_runs():
    document = (ROOT / "docs" / "providers.md").read_text("utf-8")
    examples = re.findall("^```python run\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        exec(example, {})
