"""The output file of OpenAI's batch API, and of others that speak its language.

Each line is the response to one request; its usage is read as that of any response. The tier is
`batch`, which the response itself does not say.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ...errors import InvalidUsageError
from ...responses.counts import first, member
from ...responses.identity import call_key
from ...responses.usage import usage_of
from .export import Export, LeftOut, OtherRecordError, event_of_usage, instant

if TYPE_CHECKING:
    from collections.abc import Mapping

_OK: Final = range(200, 300)
_CODE: Final = re.compile(r"[0-9a-z_]{1,40}", re.ASCII)


def _event_of(row: Mapping[str, object]) -> dict[str, object] | LeftOut:
    if "custom_id" not in row or row.keys().isdisjoint(("response", "error")):
        reason = "custom_id: missing; must be a line of a batch's output, with response or error"
        raise OtherRecordError(reason)
    response, error = row.get("response"), row.get("error")
    status = member(response, "status_code")
    if error is not None:
        return LeftOut(f"failed requests ({_code(member(error, 'code'))})")
    if not isinstance(status, int) or status not in _OK:
        return LeftOut(f"failed requests (status {_code(status)})")
    body = member(response, "body")
    usage = usage_of(body)
    # Azure's lines have no id.
    request_id = first(row.get("id"), member(response, "request_id"))
    if usage.response_id is None and not isinstance(request_id, str):
        reason = "id: missing; must be there if the response has none, to tell requests apart"
        raise InvalidUsageError(reason)
    return event_of_usage(
        usage,
        service_tier="batch",
        idempotency_key=call_key(usage.provider, usage.response_id, usage.provider, request_id),
        metadata={"custom_id": row["custom_id"]},
        occurred_at=instant(first(member(body, "created"), member(body, "created_at"))),
    )


def _code(value: object) -> str:
    """Return an error's code or a status; what is unlike one is not shown."""
    return text if _CODE.fullmatch(text := str(value)) else "unknown"


OPENAI_BATCH: Final = Export("OpenAI's batch API", _event_of, ("id", "custom_id"), has_tenant=False)
