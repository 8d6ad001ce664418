"""Turns a provider's response into the request to send, or into the rejection to keep instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from ..errors import InvalidUsageError
from ..event.kept import keepable
from ..event.keys import make_idempotency_key, new_event_key
from ..event.values import kind_of
from ..responses.usage import usage_of
from .calls import event_of_call, in_context
from .requests import RejectionRequest

if TYPE_CHECKING:
    from ..responses.usage import ResponseUsage
    from .requests import Request

_FIELDS: Final = (
    "tokens",
    "model",
    "input_tokens",
    "output_tokens",
    "provider",
    "service_tier",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_long_tokens",
    "reasoning_tokens",
)


class Source(NamedTuple):
    """Where a response comes from, as far as the request and the HTTP headers tell."""

    provider: str | None
    model: str | None = None
    response_id: str | None = None


def response_request(
    response: object, given: dict[str, object], provider: str | None, model: str | None
) -> Request:
    """Make the event of a response; `given` holds the call's arguments that are no counts."""
    fields = in_context(given)
    try:
        usage = usage_of(response, provider=provider, model=model)
    except InvalidUsageError as error:
        return _rejection(response, fields, error)
    return event_of_call(_event(usage, fields))


def instrumented_request(
    response: object,
    given: Mapping[str, object],
    provider: str | None,
    source: Source,
    lack: Literal["missing", "partial"] | None,
) -> Request:
    """Make the event of a response that an instrumented client received.

    `given` is complete: where a stream ends, another context may be current. `provider` is None if
    the response's form is to tell it. `lack` says why the response need not tell its usage; what it
    tells is recorded. `source` names what it may leave out.
    """
    try:
        usage = usage_of(response, provider=provider)
    except InvalidUsageError as error:
        if lack is None:
            return _rejection(response, given, error)
        fields = _without_usage(response, given, source)
    else:
        fields = _event(usage, given)
        fields["model"] = usage.model or source.model
    if lack is not None:
        fields["metadata"] = {**cast("dict[str, object]", fields["metadata"] or {}), "usage": lack}
        if not fields["tokens"]:
            # Not the key of the response: whoever learns its usage later can still record it.
            key = cast("str", fields["idempotency_key"])
            fields["idempotency_key"] = make_idempotency_key(key, lack)
    request = event_of_call(fields)
    if isinstance(request, RejectionRequest):
        request.is_told = given.get("tenant_id") is None
    return request


def _event(usage: ResponseUsage, given: Mapping[str, object]) -> dict[str, object]:
    told = {name: value for name in _FIELDS if (value := getattr(usage, name)) is not None}
    metadata = given.get("metadata")
    if usage.note is not None and (metadata is None or isinstance(metadata, Mapping)):
        metadata = {**cast("Mapping[str, object]", metadata or {}), "usage_note": usage.note}
    return {
        **given,
        **told,
        "token_type": given.get("token_type") or usage.token_type,
        "operation": given.get("operation") or "query",
        "metadata": metadata,
        "idempotency_key": given.get("idempotency_key") or _key(usage.provider, usage.response_id),
    }


def _key(provider: object, response_id: object) -> str:
    return new_event_key() if response_id is None else make_idempotency_key(provider, response_id)


def _without_usage(
    response: object, given: Mapping[str, object], source: Source
) -> dict[str, object]:
    """Make the event of a response of which only the names are known, or not even they."""
    return {
        **given,
        "tokens": 0,
        "model": _named(response, "model", "modelVersion", "model_version") or source.model,
        "provider": source.provider,
        "operation": given.get("operation") or "query",
        "metadata": None,
        "idempotency_key": _key(
            source.provider,
            _named(response, "id", "responseId", "response_id") or source.response_id,
        ),
    }


def _named(response: object, *names: str) -> str | None:
    for name in names:
        if isinstance(response, Mapping):
            value = cast("Mapping[str, object]", response).get(name)
        else:
            value = cast("object", getattr(response, name, None))
        if isinstance(value, str):
            return value
    return None


def _rejection(
    response: object, given: Mapping[str, object], error: InvalidUsageError
) -> RejectionRequest:
    # The response itself is not kept: it holds what people wrote and read.
    named = {name: value for name, value in given.items() if value is not None}
    return RejectionRequest(
        keepable({**named, "response": kind_of(response), "call_id": new_event_key()}),
        error.reason,
    )
