"""Spans of model calls: which ones they are, and whose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .counts import first

if TYPE_CHECKING:
    from collections.abc import Mapping

# OpenTelemetry's, OpenInference's, OpenLLMetry's and the Vercel AI SDK's.
_KINDS: Final = (
    "gen_ai.operation.name",
    "openinference.span.kind",
    "llm.request.type",
    "ai.operationId",
)
_EMBEDDINGS: Final = frozenset({"embedding", "embeddings"})
_MODEL_CALLS: Final = frozenset(
    {
        *_EMBEDDINGS,
        *("chat", "completion", "text_completion", "generate_content", "responses", "llm"),
        *("ai.generatetext.dogenerate", "ai.generateobject.dogenerate"),
        *("ai.streamtext.dostream", "ai.streamobject.dostream"),
    }
)
_AGENT: Final = ("gen_ai.agent.name", "agent_name")
_OF_MODELS: Final = ("gen_ai.", "llm.", "openinference.", "ai.")
_IDS: Final = {
    "tenant_id": ("tenant_id", "tenant.id"),
    "agent_id": ("agent_id", "gen_ai.agent.id"),
    "conversation_id": ("conversation_id", "gen_ai.conversation.id", "session.id"),
    "collection_id": ("collection_id",),
}


def is_model_call(attributes: Mapping[str, object]) -> bool:
    """Return whether the span says that it is one call of a model.

    Spans of agents, workflows and tools repeat the sums of the calls below them, so a span that
    does not say what it is does not count.
    """
    kinds = _kinds(attributes)
    return bool(kinds) and kinds <= _MODEL_CALLS


def repeats_others(attributes: Mapping[str, object]) -> bool:
    """Return whether the span's usage can be the sum of the calls below it.

    So have the spans of agents and workflows, which in older versions say no more than a name.
    """
    kinds = _kinds(attributes)
    if not kinds:
        return any(name in attributes for name in _AGENT)
    return not kinds <= _MODEL_CALLS


def is_embedding(attributes: Mapping[str, object]) -> bool:
    """Return whether the span says that it is a call of an embedding model."""
    return not _kinds(attributes).isdisjoint(_EMBEDDINGS)


def _kinds(attributes: Mapping[str, object]) -> set[str]:
    told = [attributes.get(name) for name in _KINDS]
    return {kind.lower() for kind in told if isinstance(kind, str)}


def is_of_agents(attributes: Mapping[str, object]) -> bool:
    """Return whether the span is about models or agents, without being a model call."""
    return not is_model_call(attributes) and any(name.startswith(_OF_MODELS) for name in attributes)


def ids_of(attributes: Mapping[str, object]) -> dict[str, object]:
    """Return the ids of an event that the attributes of a span or its resource tell."""
    ids = {name: first(*[attributes.get(one) for one in _IDS[name]]) for name in _IDS}
    return {name: value for name, value in ids.items() if value is not None}
