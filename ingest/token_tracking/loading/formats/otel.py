"""OTLP JSON lines, such as the OpenTelemetry Collector's file exporter writes.

A line holds the spans of several resources. Only the spans of model calls count: those of agents,
workflows and tools repeat the sums of the calls below them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from ...errors import InvalidUsageError
from ...responses.counts import first, member
from ...responses.identity import span_key
from ...responses.opentelemetry import is_span
from ...responses.spans import ids_of, is_model_call, is_of_agents
from ...responses.usage import usage_of
from .export import Export, LeftOut, OtherRecordError, count, event_of_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII | re.IGNORECASE)
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII | re.IGNORECASE)
_OTHER_VALUES: Final = ("stringValue", "doubleValue", "boolValue")
_OTHER_SIGNALS: Final = ("resourceLogs", "resourceMetrics", "resourceProfiles")


def _records(row: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the attributes of each span, with those of its resource, its ids and its start."""
    if "resourceSpans" not in row:
        yield row
    for resource in _list(row, "resourceSpans"):
        shared = _attributes(member(resource, "resource"))
        for scope in _list(resource, "scopeSpans"):
            for span in _list(scope, "spans"):
                yield {
                    **shared,
                    **_attributes(span),
                    "traceId": member(span, "traceId"),
                    "spanId": member(span, "spanId"),
                    "startTimeUnixNano": member(span, "startTimeUnixNano"),
                }


def _event_of(record: Mapping[str, object]) -> dict[str, object] | LeftOut:
    if "spanId" not in record:
        if any(signal in record for signal in _OTHER_SIGNALS):
            return LeftOut("lines of other signals")
        reason = "resourceSpans: missing; must be OTLP JSON, one export a line"
        raise OtherRecordError(reason)
    if not is_model_call(record):
        return LeftOut("spans of agents and tools" if is_of_agents(record) else "other spans")
    if not is_span(record):
        return LeftOut("model calls without usage")
    ids = span_ids(record["traceId"], record["spanId"])
    if ids is None:
        reason = "spanId: not 16 hexadecimal digits, or traceId not 32; must be OTLP's own JSON"
        raise InvalidUsageError(reason)
    usage = usage_of(record)
    return event_of_usage(
        usage,
        **ids_of(record),
        idempotency_key=span_key(usage.provider, usage.response_id, *ids),
        occurred_at=_instant(record["startTimeUnixNano"]),
    )


def span_ids(trace_id: object, span_id: object) -> tuple[str, str] | None:
    """Return the ids if they can be those of a span, in hexadecimal digits."""
    if not isinstance(trace_id, str) or not isinstance(span_id, str):
        return None
    is_span = _TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id)
    return (trace_id, span_id) if is_span else None


def _list(source: object, name: str) -> list[object]:
    found = member(source, name)
    return cast("list[object]", found) if isinstance(found, list) else []


def _attributes(source: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for attribute in _list(source, "attributes"):
        name, value = member(attribute, "key"), member(attribute, "value")
        if isinstance(name, str):
            # 64-bit integers are text in the JSON of protocol buffers.
            integer = count(member(value, "intValue"))
            found[name] = first(integer, *[member(value, kind) for kind in _OTHER_VALUES])
    return found


def _instant(nanoseconds: object) -> str | None:
    number = count(nanoseconds)
    if not isinstance(number, int) or number <= 0:
        return None
    seconds, rest = divmod(number, 10**9)
    try:
        found = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return found.replace(microsecond=rest // 1000).isoformat()


OTEL: Final = Export("OpenTelemetry", _event_of, ("traceId", "spanId"), records=_records)
