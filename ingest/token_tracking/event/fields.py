"""The one table of an event's fields: their names, kinds and limits, in wire order.

Lists, checks, messages and columns elsewhere derive from it, but for three places that write the
fields out: the fast path in `rules`, `UsageEvent` and the signature of `track_token_usage`. SQL has
its own table, the columns of `usage_events`. Tests check that all agree.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

MAX_TEXT: Final = 255  # characters
MAX_TOKENS: Final = 2**40
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)


class Field(NamedTuple):
    """One field of an event.

    `least` is the minimum length of a text in characters. A part's tokens are included in those
    of its whole, the field `part_of`. The default replaces a missing text; without a default,
    `tenant_id` is required and the other fields are optional.
    """

    name: str
    kind: Literal["text", "tokens", "object", "time"] = "text"
    least: int = 0
    part_of: str | None = None
    default: str | None = None


FIELDS: Final = (
    Field("tenant_id", least=1),
    Field("idempotency_key", least=1),
    Field("tokens", "tokens"),
    Field("token_type", default="llm"),
    Field("operation", default="query"),
    Field("model"),
    Field("agent_id", least=1),
    Field("conversation_id"),
    Field("collection_id"),
    Field("input_tokens", "tokens", part_of="tokens"),
    Field("output_tokens", "tokens", part_of="tokens"),
    Field("metadata", "object"),
    Field("occurred_at", "time"),
    Field("provider"),
    Field("service_tier"),
    Field("cache_read_tokens", "tokens", part_of="input_tokens"),
    Field("cache_write_tokens", "tokens", part_of="input_tokens"),
    Field("cache_write_long_tokens", "tokens", part_of="cache_write_tokens"),
    Field("reasoning_tokens", "tokens", part_of="output_tokens"),
)

EVENT_FIELDS: Final = tuple([field.name for field in FIELDS])
TEXT_FIELDS: Final = tuple([field.name for field in FIELDS if field.kind == "text"])
PART_FIELDS: Final = tuple([field.name for field in FIELDS if field.part_of])
TOKEN_FIELDS: Final = ("tokens", *PART_FIELDS)
_WHOLES: Final = tuple([field.part_of for field in FIELDS if field.part_of])
# Each field that has parts, in the order of their first parts, with the names of all its parts.
PARTS: Final = {
    whole: tuple([field.name for field in FIELDS if field.part_of == whole]) for whole in _WHOLES
}

INTEGER_RULE: Final = f"must be an integer from 0 to {MAX_TOKENS}"
NO_TOKENS: Final = f"tokens: missing, and so are {' and '.join(PARTS['tokens'])}; {INTEGER_RULE}"
