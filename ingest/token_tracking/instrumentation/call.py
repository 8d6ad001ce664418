"""One call of an instrumented client: under which ids its response is recorded, and how."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from ..client.complaints import complaints, where
from ..client.context import current_context
from ..client.logs import SafeLogger
from ..client.requests import Noted
from ..client.tracked_response import Source, instrumented_request
from ..default import default_tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..tracker import UsageTracker

logger = SafeLogger(__name__)

_NO_TENANT: Final = (
    "a tracked call of a model has no tenant, and its usage is kept as a rejection (said once): "
    "enclose calls in usage_context(tenant_id=...) or pass tenant_id to what tracks them"
)
_said: Final[set[str]] = set()


@dataclass(slots=True)
class Instrumentation:
    """What `instrument` was told about a client.

    `given` holds the ids that no `usage_context` gives. Without a tracker, the default one at the
    time of each call is meant.
    """

    given: Mapping[str, object]
    tracker: UsageTracker | None
    provider: str | None
    stream_usage: bool
    is_active: bool = True

    def begin(
        self,
        provider: str | None,
        model: object = None,
        *,
        is_certain: bool = True,
        embeds: bool = False,
        fields: Mapping[str, object] | None = None,
    ) -> Call | None:
        """Begin a call under the ids that are current now; None if it is not to be tracked.

        Unless the provider `is_certain`, the response's form decides. `embeds` says that the call
        is for embeddings, if the response's form does not. `fields` are those of a call that began
        earlier.
        """
        if not self.is_active:
            return None
        try:
            tracker = self.tracker or default_tracker()
            if not tracker.settings.enabled:
                return None
            fields = fields or self.fields()
            return Call(
                tracker,
                {**fields, "token_type": "embedding"} if embeds else fields,
                self.provider or (provider if is_certain else None),
                Source(self.provider or provider, model if isinstance(model, str) else None),
            )
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
            return None

    def fields(self) -> dict[str, object]:
        """Return the ids and the time of a call that begins now."""
        return {**self.given, **current_context(), "occurred_at": datetime.now(UTC)}


class Call:
    """A call whose response is awaited; its tracker takes the event without being waited for.

    What is told first counts: a response can be read by the library and then by the caller.
    """

    __slots__ = ("_fields", "_is_settled", "_provider", "_tracker", "source")

    def __init__(
        self,
        tracker: UsageTracker,
        fields: Mapping[str, object],
        provider: str | None,
        source: Source,
    ) -> None:
        self._tracker = tracker
        self._fields = fields
        self._provider = provider
        self._is_settled = False
        self.source = source

    def answered(self, response: object) -> None:
        """Record a response that came whole, with its usage."""
        if self._settles():
            self._submit(response, None)

    def answered_without_usage(self, response: object) -> None:
        """Record a response that came whole and does not tell its usage."""
        if not self._settles():
            return
        self._tracker.note(Noted.WITHOUT_USAGE)
        provider = self.source.provider or "an unknown provider"
        said = f"without usage: {provider}"
        if said not in _said:
            _said.add(said)
            logger.warning(
                "a response of %s does not tell its usage, it is recorded with 0 tokens and "
                "metadata.usage 'missing' (said once)",
                provider,
            )
        self._submit(response, "missing")

    def cut(self, response: object) -> None:
        """Record a stream that ended early with what is known of it, None if nothing is."""
        if self._settles():
            self._tracker.note(Noted.CUT_STREAM)
            self._submit(response, "partial")

    def _settles(self) -> bool:
        was_settled, self._is_settled = self._is_settled, True
        return not was_settled

    def _submit(self, response: object, lack: Literal["missing", "partial"] | None) -> None:
        if self._fields.get("tenant_id") is None:
            self._tracker.note(Noted.WITHOUT_TENANT)
            if _NO_TENANT not in _said:
                _said.add(_NO_TENANT)
                logger.warning(_NO_TENANT)
        self._tracker.submit(
            instrumented_request, response, self._fields, self._provider, self.source, lack
        )


def log_fault(error: Exception) -> None:
    """Log a fault of the tracking, which the caller of a client must never see."""
    complaints.log(
        logger,
        logging.ERROR,
        "a response could not be tracked, %s:\n%s",
        type(error).__name__,
        where(error),
    )
