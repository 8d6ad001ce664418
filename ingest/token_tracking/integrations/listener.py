"""What the adapters share: whose a call is, and the call that is recorded when it has ended."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec

from ..default import default_tracker
from ..instrumentation.call import Instrumentation, log_fault
from ..responses.counts import first
from ..responses.providers import text_of_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from ..instrumentation.call import Call
    from ..tracker import UsageTracker

P = ParamSpec("P")

_IDS: Final = {
    "tenant_id": ("tenant_id",),
    "agent_id": ("agent_id",),
    "conversation_id": ("conversation_id", "thread_id", "session_id"),
    "collection_id": ("collection_id",),
    "operation": ("operation",),
}


class Listener:
    """Begins the calls of which a library tells; `given` holds the ids that nothing else gives."""

    def __init__(self, given: Mapping[str, object], tracker: UsageTracker | None) -> None:
        told = {name: value for name, value in given.items() if value is not None}
        self._instrumentation = Instrumentation(told, tracker, None, stream_usage=False)

    def waiting(self) -> int:
        """Return how many events are neither written nor spooled yet."""
        return (self._instrumentation.tracker or default_tracker()).stats().waiting

    def stop(self) -> None:
        """Track no further call."""
        self._instrumentation.is_active = False

    def call(
        self,
        provider: str | None,
        model: object,
        response_id: str | None,
        *layers: Mapping[str, object],
        occurred_at: datetime,
        idempotency_key: str | None = None,
    ) -> Call | None:
        """Return the call, to be recorded; None if it is not to be tracked.

        Of `layers`, which hold ids, the later ones take precedence. Without a provider, the
        response's form decides.
        """
        fields: dict[str, object] = dict(self._instrumentation.given)
        for layer in layers:
            fields |= layer
        fields["occurred_at"] = occurred_at
        fields["idempotency_key"] = idempotency_key
        provider = text_of_name(provider)
        is_certain = provider is not None
        call = self._instrumentation.begin(provider, model, is_certain=is_certain, fields=fields)
        if call is not None:
            call.source = call.source._replace(response_id=response_id)
        return call


def ids_told(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return the ids and the operation that the metadata of a call tell."""
    told = {name: first(*[metadata.get(one) for one in names]) for name, names in _IDS.items()}
    return {name: value for name, value in told.items() if value is not None}


def never_raising(hook: Callable[P, None]) -> Callable[P, None]:
    """Make a hook that logs its faults: the library's caller must never pay for them."""

    @wraps(hook)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # as said
            log_fault(error)

    return guarded
