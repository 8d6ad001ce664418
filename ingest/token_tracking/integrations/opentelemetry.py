"""OpenTelemetry: a span processor that tracks the spans of model calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from ..client.context import current_context
from ..responses.identity import span_key
from ..responses.opentelemetry import is_span, reported
from ..responses.spans import ids_of, is_model_call
from .listener import Listener, never_raising

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from ..tracker import UsageTracker

_MOST_OPEN: Final = 10_000  # spans that never end must not fill the memory
_SHUTDOWN_MILLISECONDS: Final = 10_000
_LOOK_SECONDS: Final = 0.005


class TokenTrackingSpanProcessor(SpanProcessor):
    """Tracks the spans of model calls: `provider.add_span_processor(TokenTrackingSpanProcessor())`.

    Only spans that say that they are one call of a model count (`gen_ai.operation.name` chat,
    text_completion, generate_content or embeddings, or what older conventions call them): those of
    agents, workflows and tools repeat the sums of the calls below them. A span's ids are those of
    its attributes (`tenant_id`, `agent_id` or `gen_ai.agent.id`, `gen_ai.conversation.id`, ...), or
    else those of the `usage_context` in which it began, or else those of its resource, or else
    those given here. The key is made of provider and `gen_ai.response.id`, or else of the ids of
    trace and span.

    Nothing is exported, and the process's sampler decides first: of spans that are not recorded,
    no processor hears.

    Args:
        tenant_id: for spans that have none, like the other ids.
        agent_id: as above.
        conversation_id: as above.
        collection_id: as above.
        operation: as above; default "query".
        tracker: instead of the default one.

    """

    def __init__(
        self,
        *,
        tenant_id: str | UUID | None = None,
        agent_id: str | UUID | None = None,
        conversation_id: str | UUID | None = None,
        collection_id: str | UUID | None = None,
        operation: str | None = None,
        tracker: UsageTracker | None = None,
    ) -> None:
        self._listener = Listener(
            {
                "tenant_id": tenant_id,
                "agent_id": agent_id,
                "conversation_id": conversation_id,
                "collection_id": collection_id,
                "operation": operation,
            },
            tracker,
        )
        self._open: OrderedDict[tuple[int, int], Mapping[str, object]] = OrderedDict()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Note the ids of a span that begins: it may end in another context."""
        self._begun(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Track the span if it is a model call's."""
        self._ended(span)

    def shutdown(self) -> None:
        """Track no further span, and wait for the events of those that ended.

        The tracker stays open: it may be shared, and is closed by its owner or at exit.
        """
        self._listener.stop()
        self.force_flush(_SHUTDOWN_MILLISECONDS)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until no event waits any more; return whether that came to pass in time."""
        until = time.monotonic() + timeout_millis / 1000
        while self._listener.waiting():
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    @never_raising
    def _begun(self, span: Span) -> None:
        context = current_context()
        place = span.get_span_context()
        if context:
            self._open[place.trace_id, place.span_id] = context
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)

    @never_raising
    def _ended(self, span: ReadableSpan) -> None:
        place = span.get_span_context()
        context = None if place is None else self._open.pop((place.trace_id, place.span_id), None)
        attributes = cast("Mapping[str, object]", span.attributes or {})
        if place is None or not is_model_call(attributes):
            return
        has_usage = is_span(attributes)
        if not has_usage and span.status.status_code is StatusCode.ERROR:
            return
        told = reported(attributes)
        trace_id, span_id = format_trace_id(place.trace_id), format_span_id(place.span_id)
        response_id = told.response_id if isinstance(told.response_id, str) else None
        resource = cast("Mapping[str, object]", span.resource.attributes)
        call = self._listener.call(
            told.provider,
            told.model,
            response_id or f"{trace_id}:{span_id}",
            ids_of(resource),
            context or current_context(),
            ids_of(attributes),
            occurred_at=_instant(span.start_time),
            idempotency_key=span_key(told.provider, response_id, trace_id, span_id),
        )
        if call is None:
            return
        if has_usage:
            call.answered(dict(attributes))
        else:
            call.answered_without_usage(None)


def _instant(nanoseconds: int | None) -> datetime:
    if nanoseconds is None:
        return datetime.now(UTC)
    seconds, rest = divmod(nanoseconds, 10**9)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
