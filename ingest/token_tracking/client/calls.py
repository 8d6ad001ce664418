"""Turns a call's arguments into the request to send, or into the rejection to keep instead."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from ..errors import InvalidUsageError
from ..event.fields import EARLIEST, MAX_TEXT, NO_TOKENS, PART_FIELDS
from ..event.kept import fields_of, keepable
from ..event.keys import new_event_key
from ..event.mended_metadata import event_of
from ..event.rules import checked_holdable, checked_instant, checked_text
from ..event.values import kind_of
from .context import current_context, is_used
from .logs import SafeLogger
from .requests import (
    Answer,
    EventRequest,
    Outcome,
    OwnerRequest,
    RejectionRequest,
    Request,
    VoidRequest,
)

if TYPE_CHECKING:
    from ..event.usage_event import UsageEvent

logger = SafeLogger(__name__)

NO_OP: Final = Answer(Outcome.NO_OP)
_OUT_OF_CONTEXT: Final = (
    "; no usage_context reaches this call: it does not where one half of a plain def dependency, "
    "a generator's step or an executor's thread runs in another context"
)
_changed: Final[set[str]] = set()  # changes of metadata that were logged already
_MOST_CHANGED: Final = 50


def call_request(fields: dict[str, object]) -> Request | Answer:
    return NO_OP if _counts_nothing(fields) else event_of_call(in_context(fields))


def event_request(event: object) -> Request | Answer:
    if isinstance(event, Mapping):
        fields = in_context(fields_of(cast("Mapping[str, object]", event)))
    elif hasattr(event, "model_dump"):
        # A complete event must not depend on the context in which it is sent.
        fields = cast("UsageEvent", event).model_dump()
    else:
        reason = f"event: {kind_of(event)}; must be an object"
        return RejectionRequest(keepable(event), reason)
    # Checked first: a misspelt field must not look like an event without tokens.
    request = event_of_call(fields)
    refused = isinstance(request, RejectionRequest) and request.reason != NO_TOKENS
    return request if refused or not _counts_nothing(fields) else NO_OP


def _counts_nothing(fields: Mapping[str, object]) -> bool:
    tokens = fields.get("tokens")
    if type(tokens) is int and tokens != 0:
        return False
    return all(fields.get(part) is None for part in PART_FIELDS) and _is_zero(tokens)


def _is_zero(tokens: object) -> bool:
    if tokens is None or type(tokens) in {int, bool}:
        return tokens is None or (tokens == 0 and tokens is not False)
    try:
        return bool(tokens == 0)  # a number of another type
    except Exception:  # noqa: BLE001  # raised by the value's own method: the rules reject it
        return False


def in_context(fields: dict[str, object]) -> dict[str, object]:
    if context := current_context():
        for name, value in context.items():
            if fields.get(name) is None:
                fields[name] = value
    return fields


def event_of_call(fields: dict[str, object]) -> Request:
    # Set the key before anything can fail, so that a rejected call is kept once despite retries.
    if fields.get("idempotency_key") is None:
        fields["idempotency_key"] = new_event_key()
    now = datetime.now(UTC)
    try:
        event, changed = event_of(fields, now)
    except Exception as error:  # noqa: BLE001  # of the rules, or of a value's own methods
        reason = (
            error.reason
            if isinstance(error, InvalidUsageError)
            else f"event: {type(error).__name__} while it was read; must be values that JSON has"
        )
        if is_used() and fields.get("tenant_id") is None and reason.startswith("tenant_id: "):
            reason += _OUT_OF_CONTEXT
        given = {name: value for name, value in fields.items() if value is not None}
        return RejectionRequest(keepable(given), reason)
    if changed is not None and changed not in _changed and len(_changed) < _MOST_CHANGED:
        _changed.add(changed)
        logger.warning("usage event kept, with its metadata changed (said once): %s", changed)
    logger.debug("call accepted as event %s", event.idempotency_key)
    request = EventRequest((event.tenant_id, event.idempotency_key), event.payload)
    request.original = fields
    return request


def old_arguments(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the call's ten original arguments; `tokens` is the sum if only parts were given."""
    parts = (fields.get("input_tokens"), fields.get("output_tokens"))
    return {
        "tenant_id": fields.get("tenant_id"),
        "tokens": fields.get("tokens") or sum(cast("int", part or 0) for part in parts),
        "model": fields.get("model"),
        "agent_id": fields.get("agent_id"),
        "conversation_id": fields.get("conversation_id"),
        "collection_id": fields.get("collection_id"),
        "token_type": fields.get("token_type", "llm"),
        "operation": fields.get("operation", "query"),
        "metadata": fields.get("metadata"),
        "idempotency_key": fields["idempotency_key"],
    }


def void_request(tenant_id: object, idempotency_key: object, reason: object) -> Request:
    given = {"tenant_id": tenant_id, "idempotency_key": idempotency_key, "reason": reason}
    try:
        return VoidRequest.of(
            _required_text("tenant_id", tenant_id),
            _required_text("idempotency_key", idempotency_key),
            _required_text("reason", reason, most=1000),
        )
    except InvalidUsageError as error:
        return RejectionRequest(_kept("void", given), error.reason)


def owner_request(agent_id: object, owner_tenant_id: object, valid_from: object) -> Request:
    instant = datetime.now(UTC) if valid_from is None else valid_from
    given = {"agent_id": agent_id, "owner_tenant_id": owner_tenant_id, "valid_from": instant}
    try:
        checked = checked_instant("valid_from", instant)
        if checked < EARLIEST:
            reason = "valid_from: a time out of range; must be from 2000-01-01 to 9999-12-31 UTC"
            raise InvalidUsageError(reason)
        return OwnerRequest.of(
            _required_text("agent_id", agent_id),
            None if owner_tenant_id is None else _required_text("owner_tenant_id", owner_tenant_id),
            checked.isoformat(),
        )
    except InvalidUsageError as error:
        return RejectionRequest(_kept("agent_owner", given), error.reason)


def _kept(kind: str, given: Mapping[str, object]) -> bytes:
    # Identifies this call, so that it is kept once despite retries.
    return keepable({kind: given, "call_id": new_event_key()})


def _required_text(field: str, value: object, most: int = MAX_TEXT) -> str:
    if value is None:
        reason = f"{field}: missing; must be text of 1 to {most} characters"
        raise InvalidUsageError(reason)
    return checked_holdable(field, checked_text(field, value, least=1, most=most))
