"""Langfuse's export of observations, as JSON or CSV, in either spelling of its names.

`usageDetails` are disjoint counts with free names, and their total. Programs that send inclusive
counts are recognized by a total of input and output alone. An observation that was a span has the
key of that span.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from ...errors import InvalidUsageError
from ...event.keys import make_idempotency_key
from ...responses.identity import span_key
from ...responses.providers import text_of_name
from ...responses.usage import usage_of
from .export import (
    Export,
    LeftOut,
    OtherRecordError,
    count,
    event_of_usage,
    first_at,
    instant,
    parsed,
)
from .otel import span_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MODEL_CALLS: Final = frozenset({"GENERATION", "EMBEDDING"})
_SPAN: Final = "metadata.attributes"
_INPUT: Final = ("input", "prompt", "cache", "tool_use")
_OUTPUT: Final = ("output", "completion", "candidates", "reasoning", "thoughts")
_REASONING: Final = ("reasoning", "thoughts", "thinking")
_CACHE_WRITE: Final = ("creation", "write")


def _event_of(row: Mapping[str, object]) -> dict[str, object] | LeftOut:
    observation, kind = row.get("id"), row.get("type")
    if not isinstance(observation, str) or not isinstance(kind, str):
        name = "type" if isinstance(observation, str) else "id"
        reason = f"{name}: missing; must be an observation, with id and type"
        raise OtherRecordError(reason)
    kind = kind.upper()
    if kind not in _MODEL_CALLS:
        return LeftOut("observations that are no generations")
    details = _details(row)
    if not any(details.values()):
        return LeftOut("generations without usage")
    usage = usage_of(
        {
            "id": first_at(row, f"{_SPAN}.gen_ai.response.id"),
            "model": first_at(row, "model", "providedModelName", "provided_model_name"),
            "data" if kind == "EMBEDDING" else "choices": (),
            "usage": _inclusive(details),
        }
    )
    provider = text_of_name(
        first_at(row, f"{_SPAN}.gen_ai.provider.name", f"{_SPAN}.gen_ai.system")
    )
    span = span_ids(first_at(row, "traceId", "trace_id"), observation)
    return event_of_usage(
        usage._replace(provider=provider),
        idempotency_key=make_idempotency_key("langfuse", observation)
        if span is None
        else span_key(provider, usage.response_id, *span),
        tenant_id=first_at(row, "userId", "user_id"),
        conversation_id=first_at(row, "sessionId", "session_id"),
        occurred_at=instant(first_at(row, "startTime", "start_time")),
    )


def _details(row: Mapping[str, object]) -> dict[str, int]:
    found = parsed(first_at(row, "usageDetails", "usage_details"))
    if isinstance(found, dict):
        details = cast("dict[str, object]", found)
    else:
        details = {
            "input": first_at(row, "inputTokens", "promptTokens", "usage.input"),
            "output": first_at(row, "outputTokens", "completionTokens", "usage.output"),
            "total": first_at(row, "totalTokens", "usage.total"),
        }
    numbers = {name: count(value) for name, value in details.items() if value is not None}
    for name, value in numbers.items():
        if type(value) is not int:
            reason = f"usageDetails: {name[:100]} is no integer; must be an integer"
            raise InvalidUsageError(reason)
    return cast("dict[str, int]", numbers)


def _inclusive(details: Mapping[str, int]) -> dict[str, object]:
    """Return the usage in OpenAI's form, in which a whole contains its parts."""
    sums: Counter[str] = Counter()
    for name, number in details.items():
        sums.update(dict.fromkeys(_sums_with(name), number))
    total = details.get("total")
    wholes = {name: details[name] for name in ("input", "output") if name in details}
    if total is not None and sums["input"] + sums["output"] != total == sum(wholes.values()):
        sums = Counter({**sums, **wholes})
    return {
        "prompt_tokens": sums.get("input"),
        "completion_tokens": sums.get("output"),
        "total_tokens": total,
        "prompt_tokens_details": {
            "cached_tokens": sums.get("cache read"),
            "cache_write_tokens": sums.get("cache write"),
            "cache_write_tokens_details": {"ttl_12h_tokens": sums.get("long cache write")},
        },
        "completion_tokens_details": {"reasoning_tokens": sums.get("reasoning")},
    }


def _sums_with(name: str) -> Iterator[str]:
    """Yield the sums that contain the count of that name."""
    if name.startswith(_OUTPUT):
        yield "output"
        if any(word in name for word in _REASONING):
            yield "reasoning"
    elif name.startswith(_INPUT):
        yield "input"
        if any(word in name for word in _CACHE_WRITE):
            yield "cache write"
            if "1h" in name:
                yield "long cache write"
        elif "cache" in name:
            yield "cache read"


LANGFUSE: Final = Export("Langfuse", _event_of, ("id", "type"), is_csv=True)
