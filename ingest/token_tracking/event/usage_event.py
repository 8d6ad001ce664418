"""A usage event as a value: checked when it is made, sent as often as one likes, counted once."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from .mended_metadata import event_of


class UsageEvent(BaseModel):
    """One LLM or embedding call of one tenant.

    The fields are the columns of `usage_events`. The key and `occurred_at` are fixed here, where
    they are not given, so that sending the same event again counts nothing twice. `tokens` is the
    sum of its parts where it is 0 or None, and one of the three must be given; `occurred_at` is in
    UTC; ids may be given as `UUID`. Metadata that breaks a rule is changed as little as that
    takes, and refuses nothing.

    Raises:
        InvalidUsageError: a rule is broken; the reason names field, what was found and the rule.

    Example:
        >>> UsageEvent(tenant_id="acme", input_tokens=3, output_tokens=4).tokens
        7

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The defaults are for type checkers: what is not given is filled in before.
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

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: object) -> object:
        # The rules' own result, as JSON has it: one place decides what an event is.
        event, _ = event_of(data, datetime.now(UTC))
        return json.loads(event.payload)
