"""A usage event as a value: validated on creation, sent any number of times, counted once."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from .mended_metadata import event_of


class UsageEvent(BaseModel):
    """One LLM or embedding call of one tenant.

    The fields are the columns of `usage_events`. A missing key or `occurred_at` is set on creation,
    so that sending the same event again counts nothing twice. If `tokens` is 0 or None, it is the
    sum of `input_tokens` and `output_tokens`; one of the three must be given. The cached tokens are
    parts of `input_tokens`, `cache_write_long_tokens` of `cache_write_tokens`, `reasoning_tokens`
    of `output_tokens`: a part needs its whole. `occurred_at` is converted to UTC; ids may be given
    as `UUID`. Metadata that breaks a rule is changed as little as necessary, and never causes an
    error.

    Raises:
        InvalidUsageError: a rule is broken; the reason names the field, the finding and the rule.

    Example:
        >>> UsageEvent(tenant_id="acme", input_tokens=3, output_tokens=4).tokens
        7

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The defaults are for type checkers: the validator fills in missing fields.
    tenant_id: str
    idempotency_key: str = ""
    tokens: int = 0
    token_type: str = "llm"  # noqa: S105
    operation: str = "query"
    model: str | None = None
    agent_id: str | None = None
    conversation_id: str | None = None
    collection_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    occurred_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    provider: str | None = None
    service_tier: str | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_long_tokens: int | None = None
    reasoning_tokens: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: object) -> object:
        # Use the wire format's values: the rules are the only place that decides what an event is.
        event, _ = event_of(data, datetime.now(UTC))
        return json.loads(event.payload)
