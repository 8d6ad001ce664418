"""Cohere's chat and embeddings: the tokens that are billed, which are fewer than the model saw."""

from __future__ import annotations

from .counts import Counts, Reported, first, member


def reported(response: object, usage: object) -> Reported:
    """Return what the response, or the last event of its stream, reports."""
    counts = Counts()
    billed = first(member(usage, "billed_units"), member(usage, "tokens"))
    is_embedding = member(response, "embeddings") is not None
    output_tokens = counts.read(billed, "output_tokens")
    return Reported(
        provider="cohere",
        model=member(response, "model"),
        response_id=first(
            member(response, "id"),
            member(response, "response_id"),
            member(response, "generation_id"),
        ),
        faults=counts.faults,
        input_tokens=counts.read(billed, "input_tokens"),
        output_tokens=0 if is_embedding and output_tokens is None else output_tokens,
        token_type="embedding" if is_embedding else "llm",
    )
