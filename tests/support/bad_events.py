"""Events that break one rule each, and events at the edge of what is allowed."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from token_tracking import InvalidUsageError
from token_tracking.event.fields import EVENT_FIELDS
from token_tracking.event.rules import canonical_time, checked_instant

GOOD: dict[str, Any] = {
    "tenant_id": "acme",
    "tokens": 5,
    "token_type": "llm",
    "operation": "query",
    "occurred_at": "2026-01-02T03:04:05+00:00",
}


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def _ahead(delta: timedelta) -> str:
    return (datetime.now(UTC) + delta).isoformat()


# The case, and the field that the reason names.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "negative tokens": ({"tokens": -1}, "tokens"),
    "negative output_tokens": ({"output_tokens": -1}, "output_tokens"),
    "negative input_tokens beside output_tokens": (
        {"input_tokens": -1, "output_tokens": 6},
        "input_tokens",
    ),
    "token_type of 256 characters": ({"token_type": "x" * 256}, "token_type"),
    "operation of 256 characters": ({"operation": "x" * 256}, "operation"),
    "conversation_id of 256 characters": ({"conversation_id": "x" * 256}, "conversation_id"),
    "collection_id of 256 characters": ({"collection_id": "x" * 256}, "collection_id"),
    "True as tokens": ({"tokens": True}, "tokens"),
    "False as tokens": ({"tokens": False}, "tokens"),
    "text as tokens": ({"tokens": "5"}, "tokens"),
    "a fraction of a token": ({"tokens": 1.5}, "tokens"),
    "2**40 + 1": ({"tokens": 2**40 + 1}, "tokens"),
    "2**41": ({"tokens": 2**41}, "tokens"),
    "2**63": ({"tokens": 2**63}, "tokens"),
    "2**70": ({"tokens": 2**70}, "tokens"),
    "negative part": ({"input_tokens": -1}, "input_tokens"),
    "tokens below the sum of their parts": (
        {"tokens": 3, "input_tokens": 2, "output_tokens": 2},
        "tokens",
    ),
    "parts whose sum is above the limit": (
        {"tokens": 0, "input_tokens": 2**40, "output_tokens": 1},
        "tokens",
    ),
    "unknown field": ({"token": 5}, "token"),
    "no tenant": ({"tenant_id": None}, "tenant_id"),
    "empty tenant": ({"tenant_id": ""}, "tenant_id"),
    "a number as tenant": ({"tenant_id": 7}, "tenant_id"),
    "tenant of 256 characters": ({"tenant_id": "x" * 256}, "tenant_id"),
    "key of 300 characters": ({"idempotency_key": "x" * 300}, "idempotency_key"),
    "empty key": ({"idempotency_key": ""}, "idempotency_key"),
    "empty agent": ({"agent_id": ""}, "agent_id"),
    "model of 256 characters": ({"model": "x" * 256}, "model"),
    "a list as operation": ({"operation": ["query"]}, "operation"),
    "NUL in a tenant": ({"tenant_id": "a\0b"}, "tenant_id"),
    "NUL in a model": ({"model": "\0"}, "model"),
    "NUL in metadata": ({"metadata": {"a": ["\0"]}}, "metadata"),
    "NUL in a name in metadata": ({"metadata": {"\0": 1}}, "metadata"),
    "lone surrogate in a key": ({"idempotency_key": "\ud800"}, "idempotency_key"),
    "lone surrogate in metadata": ({"metadata": {"a": {"b": "x\udfff"}}}, "metadata"),
    "metadata of 1 MiB": ({"metadata": {"a": "x" * 2**20}}, "metadata"),
    "metadata just above 16 KiB": ({"metadata": {"a": "x" * (16384 - 8)}}, "metadata"),
    "metadata above 16 KiB by its exponents": ({"metadata": {"a": [1e300] * 55}}, "metadata"),
    "metadata a thousand deep": ({"metadata": _nested(900)}, "metadata"),
    "a number in metadata that no double holds": ({"metadata": {"a": 10**400}}, "metadata"),
    "an unknown field that would forge a line": ({"x\n2026 ERROR \x1b[31m": 5}, "a field"),
    "just before 2000, to the last digit": (
        {"occurred_at": "1999-12-31T23:59:59.9999999Z"},
        "occurred_at",
    ),
    "metadata nine deep": ({"metadata": _nested(9)}, "metadata"),
    "metadata that is a list": ({"metadata": [1]}, "metadata"),
    "metadata that is text": ({"metadata": "{}"}, "metadata"),
    "naive time": ({"occurred_at": "2026-01-02T03:04:05"}, "occurred_at"),
    "time next year": ({"occurred_at": _ahead(timedelta(days=365))}, "occurred_at"),
    "time an hour ahead": ({"occurred_at": _ahead(timedelta(hours=1))}, "occurred_at"),
    "time before 2000": ({"occurred_at": "1999-12-31T23:59:59+00:00"}, "occurred_at"),
    "a day that is none": ({"occurred_at": "2026-02-30T00:00:00+00:00"}, "occurred_at"),
    "hour 24": ({"occurred_at": "2026-01-02T24:00:00+00:00"}, "occurred_at"),
    "second 60": ({"occurred_at": "2026-01-02T03:04:60+00:00"}, "occurred_at"),
    "infinity": ({"occurred_at": "infinity"}, "occurred_at"),
    "now": ({"occurred_at": "now"}, "occurred_at"),
    "a number as time": ({"occurred_at": 1767323045}, "occurred_at"),
    "a provider of 256 characters": ({"provider": "x" * 256}, "provider"),
    "a number as service tier": ({"service_tier": 1}, "service_tier"),
    "text as cached tokens": ({"input_tokens": 5, "cache_read_tokens": "5"}, "cache_read_tokens"),
    "negative cached tokens": ({"input_tokens": 5, "cache_read_tokens": -1}, "cache_read_tokens"),
    "cached tokens without input": ({"cache_read_tokens": 1}, "cache_read_tokens"),
    "no cached tokens without input": ({"cache_write_tokens": 0}, "cache_write_tokens"),
    "more cached tokens than input": (
        {"input_tokens": 5, "cache_read_tokens": 3, "cache_write_tokens": 3},
        "input_tokens",
    ),
    "more tokens read from a cache than input": (
        {"input_tokens": 2, "output_tokens": 3, "cache_read_tokens": 3},
        "input_tokens",
    ),
    "long kept tokens without cached ones": (
        {"input_tokens": 5, "cache_write_long_tokens": 1},
        "cache_write_long_tokens",
    ),
    "more long kept tokens than cached ones": (
        {"input_tokens": 5, "cache_write_tokens": 1, "cache_write_long_tokens": 2},
        "cache_write_tokens",
    ),
    "reasoning without output": ({"input_tokens": 5, "reasoning_tokens": 1}, "reasoning_tokens"),
    "more reasoning than output": ({"output_tokens": 1, "reasoning_tokens": 2}, "output_tokens"),
    "parts of parts beyond a bigint": (
        {"input_tokens": 5, "cache_read_tokens": 2**62, "cache_write_tokens": 2**62},
        "cache_read_tokens",
    ),
    "only reasoning": ({"tokens": None, "reasoning_tokens": 2}, "reasoning_tokens"),
}

# Bad for SQL, too; but a library call without any number is a no-op and returns True.
WITHOUT_NUMBER: dict[str, tuple[dict[str, Any], str]] = {
    "no number of tokens": ({"tokens": None}, "tokens"),
    "no number but in metadata": ({"tokens": None, "metadata": {"tokens": 5}}, "tokens"),
}

# Each event is accepted; the second value is what its row holds.
EDGE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2**40 tokens": ({"tokens": 2**40}, {"tokens": 2**40}),
    "the sum of the parts": (
        {"tokens": 0, "input_tokens": 3, "output_tokens": 4},
        {"tokens": 7, "input_tokens": 3, "output_tokens": 4},
    ),
    "more than the parts": (
        {"tokens": 9, "input_tokens": 3, "output_tokens": 4},
        {"tokens": 9},
    ),
    "one part": ({"tokens": None, "output_tokens": 4}, {"tokens": 4, "input_tokens": None}),
    "ids of 255 characters": (
        {"tenant_id": "\U0001f600" * 255, "idempotency_key": "é" * 255, "agent_id": "x" * 255},
        {"tenant_id": "\U0001f600" * 255},
    ),
    "labels in any case, with space": (
        {"token_type": " LLM\n", "operation": "\tVector_Search "},
        {"token_type": "llm", "operation": "vector_search"},
    ),
    "an unforeseen label": ({"operation": "quary"}, {"operation": "quary"}),
    "no labels": (
        {"token_type": None, "operation": None},
        {"token_type": "llm", "operation": "query"},
    ),
    "a float of a whole number": ({"tokens": 2.0, "input_tokens": 1e0}, {"tokens": 2}),
    "nine digits of a second": (
        {"occurred_at": "2025-12-31T23:59:59.999999999Z"},
        {"occurred_at": datetime(2025, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    ),
    "seven digits and an offset": (
        {"occurred_at": "2025-12-31T23:59:59.9999999+00:00"},
        {"occurred_at": datetime(2025, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    ),
    "five digits and an offset": (
        {"occurred_at": "2025-12-31T23:59:59.12345+05:30"},
        {"occurred_at": datetime(2025, 12, 31, 18, 29, 59, 123450, tzinfo=UTC)},
    ),
    "all kinds of tokens": (
        {
            "tokens": 0,
            "input_tokens": 7,
            "output_tokens": 5,
            "provider": " OpenAI\n",
            "service_tier": "Flex",
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "cache_write_long_tokens": 4,
            "reasoning_tokens": 5.0,
        },
        {
            "tokens": 12,
            "provider": "openai",
            "service_tier": "flex",
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "cache_write_long_tokens": 4,
            "reasoning_tokens": 5,
        },
    ),
    "kinds of no tokens": (
        {"input_tokens": 0, "cache_read_tokens": 0, "cache_write_tokens": 0, "provider": " "},
        {"cache_read_tokens": 0, "cache_write_tokens": 0, "provider": None, "service_tier": None},
    ),
    "a large number in metadata": ({"metadata": {"a": 10**308}}, {}),
    "an empty model": ({"model": ""}, {"model": None}),
    "metadata of 16 KiB": ({"metadata": {"a": "x" * (16384 - 9)}}, {}),
    "metadata eight deep": ({"metadata": _nested(8)}, {"metadata": _nested(8)}),
    "many brackets, not deep": ({"metadata": {"a": [[]] * 50}}, {}),
    "an escaped backslash before u0000": ({"metadata": {"a": "\\u0000"}}, {}),
    "a surrogate pair": ({"metadata": {"a": "\U0001f600"}}, {"metadata": {"a": "\U0001f600"}}),
    "control characters": ({"model": "\x01\x1f\x7f"}, {"model": "\x01\x1f\x7f"}),
    "another offset": (
        {"occurred_at": "2026-01-02T03:04:05.5+05:30"},
        {"occurred_at": datetime(2026, 1, 1, 21, 34, 5, 500000, tzinfo=UTC)},
    ),
    "a space and a short offset": (
        {"occurred_at": "2026-01-02 03:04:05+00"},
        {"occurred_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)},
    ),
    "the last day of February": (
        {"occurred_at": "2024-02-29T23:59:59.999999Z"},
        {"occurred_at": datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)},
    ),
    "the start of 2000": (
        {"occurred_at": "2000-01-01T00:00:00Z"},
        {"occurred_at": datetime(2000, 1, 1, tzinfo=UTC)},
    ),
    "two minutes ahead": ({"occurred_at": _ahead(timedelta(minutes=2))}, {}),
}


def as_if_canonical(fields: dict[str, object]) -> str:
    """Write any value like `to_wire`: compact, in column order, without nulls."""
    has_parts = any(fields.get(name) is not None for name in ("input_tokens", "output_tokens"))
    fields = {
        "idempotency_key": "k",
        "metadata": {},
        **GOOD,
        "tenant_id": None,
        "tokens": 0 if has_parts else None,
        **fields,
    }
    order = [*EVENT_FIELDS, *(name for name in fields if name not in EVENT_FIELDS)]
    given = {name: fields[name] for name in order if fields.get(name) is not None}
    with suppress(InvalidUsageError):
        given["occurred_at"] = canonical_time(checked_instant("occurred_at", fields["occurred_at"]))
    text = json.dumps(given, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(given, separators=(",", ":"), allow_nan=False)
    return text
