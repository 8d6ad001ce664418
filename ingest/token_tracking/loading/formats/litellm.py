"""LiteLLM's table `LiteLLM_SpendLogs`, as CSV or JSON lines.

The tokens are those of the row, their kinds those of `metadata.usage_object` (or of
`metadata.additional_usage_values`), in which the input contains what the cache gave and took.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from ...responses.identity import litellm_key
from ...responses.providers import text_of_name
from ...responses.usage import usage_of
from ..cells import instant_of
from .export import (
    Export,
    LeftOut,
    OtherRecordError,
    at,
    count,
    event_of_usage,
    first_at,
    instant,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_TRUE: Final = frozenset({"true", "t", "1"})
_NO_ID: Final = "None"  # LiteLLM's text for the id of a response that has none
_READS: Final = frozenset({"get_responses", "cancel_responses"})
_BACKGROUND: Final = "_background_cost"
_USAGE: Final = "metadata.usage_object"
_ADDITIONAL: Final = "metadata.additional_usage_values"


def _event_of(row: Mapping[str, object]) -> dict[str, object] | LeftOut:
    call_id = row.get("request_id")
    if call_id == _NO_ID:
        call_id = first_at(row, "litellm_call_id", "metadata.litellm_call_id")
    if not isinstance(call_id, str):
        reason = "request_id: missing; must be a row of LiteLLM_SpendLogs"
        raise OtherRecordError(reason)
    if str(row.get("cache_hit")).lower() in _TRUE or "_cache_hit" in call_id:
        return LeftOut("cache hits")
    call_type = str(row.get("call_type")).removeprefix("a")
    if call_type in _READS and not call_id.endswith(_BACKGROUND):
        return LeftOut("reads of earlier responses")
    counts = {name: count(row[name]) for name in _COUNTS if row.get(name) not in (None, "")}
    if not any(counts.values()):
        is_failed = row.get("status") == "failure"
        return LeftOut("failed calls" if is_failed else "calls without tokens")
    provider = text_of_name(row.get("custom_llm_provider"))
    details = {**_object(row, _ADDITIONAL), **_object(row, _USAGE)}
    usage = usage_of(
        {
            "model": row.get("model"),
            "data" if call_type == "embedding" else "choices": (),
            "service_tier": details.get("service_tier"),
            "usage": {**details, **counts},
        },
    )
    return event_of_usage(
        usage._replace(provider=provider),
        idempotency_key=litellm_key(provider, call_id.removesuffix(_BACKGROUND), _started(row)),
        tenant_id=first_at(row, "team_id", "user", "api_key"),
        agent_id=first_at(row, "agent_id"),
        conversation_id=first_at(row, "session_id"),
        occurred_at=instant(row.get("startTime")),
    )


def _started(row: Mapping[str, object]) -> datetime | None:
    found = instant_of(str(row.get("startTime")), UTC)
    return found if isinstance(found, datetime) else None


def _object(row: Mapping[str, object], path: str) -> dict[str, object]:
    found = parsed(at(row, path))
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


LITELLM: Final = Export("LiteLLM", _event_of, ("request_id",), is_csv=True)
