"""The attributes of a model call's span: OpenTelemetry's, and the names that others gave them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .counts import Counts, Reported, first
from .providers import text_of_name
from .spans import is_embedding
from .tiers import unusual_tier

if TYPE_CHECKING:
    from collections.abc import Mapping

_USAGE: Final = "gen_ai.usage"
_OPENINFERENCE: Final = "llm.token_count"
# The newest name comes first; the tokens of two names are the same tokens.
_INPUT: Final = (
    f"{_USAGE}.input_tokens",
    f"{_USAGE}.prompt_tokens",
    f"{_OPENINFERENCE}.prompt",
    "llm.usage.prompt_tokens",
)
_OUTPUT: Final = (
    f"{_USAGE}.output_tokens",
    f"{_USAGE}.completion_tokens",
    f"{_OPENINFERENCE}.completion",
    "llm.usage.completion_tokens",
)
_TOTAL: Final = (
    f"{_USAGE}.total_tokens",
    f"{_OPENINFERENCE}.total",
    "llm.usage.total_tokens",
)
_CACHE_READ: Final = (
    f"{_USAGE}.cache_read.input_tokens",
    f"{_USAGE}.input_tokens.cached",  # Sentry's
    f"{_USAGE}.cache_read_input_tokens",
    f"{_USAGE}.cache_read_tokens",
    f"{_USAGE}.details.cache_read_tokens",
    f"{_OPENINFERENCE}.prompt_details.cache_read",
)
_CACHE_WRITE: Final = (
    f"{_USAGE}.cache_write.input_tokens",
    f"{_USAGE}.cache_creation.input_tokens",
    f"{_USAGE}.input_tokens.cache_write",  # Sentry's
    f"{_USAGE}.cache_creation_input_tokens",
    f"{_USAGE}.cache_write_tokens",
    f"{_USAGE}.details.cache_write_tokens",
    f"{_OPENINFERENCE}.prompt_details.cache_write",
)
_REASONING: Final = (
    f"{_USAGE}.reasoning.output_tokens",
    f"{_USAGE}.output_tokens.reasoning",  # Sentry's
    f"{_USAGE}.reasoning_tokens",
    f"{_USAGE}.details.reasoning_tokens",
    f"{_OPENINFERENCE}.completion_details.reasoning",
)
_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
_MODEL: Final = (
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.model_name",
    "embedding.model_name",
)
_TIER: Final = ("openai.response.service_tier", "gen_ai.openai.response.service_tier")
_KNOWN: Final = frozenset((*_INPUT, *_OUTPUT, *_TOTAL))


def is_span(attributes: Mapping[str, object]) -> bool:
    """Return whether the attributes have usage."""
    return not _KNOWN.isdisjoint(attributes)


def reported(attributes: Mapping[str, object]) -> Reported:
    """Return what the span reports; input and output contain their parts."""
    counts = Counts()

    def value(names: tuple[str, ...]) -> object:
        return first(*[attributes.get(name) for name in names])

    embeds = is_embedding(attributes)
    output_tokens = counts.read(attributes, *_OUTPUT)
    return Reported(
        provider=text_of_name(value(_PROVIDER)),
        model=value(_MODEL),
        response_id=attributes.get("gen_ai.response.id"),
        faults=counts.faults,
        total=counts.read(attributes, *_TOTAL),
        input_tokens=counts.read(attributes, *_INPUT),
        output_tokens=0 if embeds and output_tokens is None else output_tokens,
        cache_read_tokens=counts.read(attributes, *_CACHE_READ),
        cache_write_tokens=counts.read(attributes, *_CACHE_WRITE),
        reasoning_tokens=counts.read(attributes, *_REASONING),
        service_tier=unusual_tier(*[attributes.get(name) for name in _TIER]),
        token_type="embedding" if embeds else "llm",
    )
