"""Makes of a stream's events the response that `usage_of` reads, one class for each form.

Only ids, model, tier and usage are kept, never a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Protocol, cast

Json = Mapping[str, object]

_NAMES: Final = ("id", "object", "type", "model", "service_tier", "status", "background", "usage")


class Streamed(Protocol):
    """The response that a stream's events make up.

    `marks` are texts of which the data of each event that matters contains one. `response` is what
    is known by now. `is_complete` is set with the event that ends the stream, `has_failed` if it
    says that the provider failed.
    """

    marks: ClassVar[tuple[bytes, ...]]
    response: dict[str, object] | None
    is_complete: bool
    has_failed: bool

    def take(self, event: Json) -> None:
        """Take the next event that matters."""
        ...


class StreamedChat:
    """Chat completions of OpenAI, and of those that speak its language; completions of Mistral.

    The usage is in a last chunk without choices, in the last one with choices, or, as a running
    sum, in each.
    """

    marks: ClassVar[tuple[bytes, ...]] = (b'"usage"',)

    def __init__(self) -> None:
        self.response: dict[str, object] | None = None
        self.is_complete = False
        self.has_failed = False

    def take(self, event: Json) -> None:
        self.response = _updated(self.response, event)
        if usage_is_alone(event):
            self.is_complete = True


def usage_is_alone(event: Json) -> bool:
    """Return whether this is the additional chunk that only tells the usage."""
    return not event.get("choices") and event.get("usage") is not None


class StreamedResponse:
    """OpenAI's Responses: the event that ends the stream holds the whole response."""

    marks: ClassVar[tuple[bytes, ...]] = (b'"usage"', b"response.created", b"response.failed")

    def __init__(self) -> None:
        self.response: dict[str, object] | None = None
        self.is_complete = False
        self.has_failed = False

    def take(self, event: Json) -> None:
        response = event.get("response")
        if not isinstance(response, Mapping):
            return
        self.response = _updated(self.response, cast("Json", response))
        if event.get("type") in {"response.completed", "response.incomplete", "response.failed"}:
            self.is_complete = True
            self.has_failed = (
                event["type"] == "response.failed" and self.response.get("usage") is None
            )


class StreamedMessage:
    """Anthropic's messages: `message_start` tells the input, `message_delta` sums up what came.

    Each count is a running sum, so the last value that was seen counts.
    """

    marks: ClassVar[tuple[bytes, ...]] = (b'"usage"', b"message_stop")

    def __init__(self) -> None:
        self.response: dict[str, object] | None = None
        self.is_complete = False
        self.has_failed = False

    def take(self, event: Json) -> None:
        if event.get("type") == "message_stop":
            self.is_complete = True
            return
        message = event.get("message")
        before = self.response or {}
        told = before.get("usage")
        usage = dict(cast("Json", told)) if isinstance(told, Mapping) else {}
        if isinstance(message, Mapping):
            self.response = _updated(self.response, cast("Json", message))
            told = self.response.get("usage")
        else:
            told = event.get("usage")
        if isinstance(told, Mapping):
            usage |= {name: n for name, n in cast("Json", told).items() if n is not None}
            self.response = {**(self.response or {}), "usage": usage}


def _updated(known: dict[str, object] | None, told: Json) -> dict[str, object]:
    new = {name: told[name] for name in _NAMES if told.get(name) is not None}
    return new if known is None else {**known, **new}
