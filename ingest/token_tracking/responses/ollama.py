"""Ollama's own API: chat, generate, embed, and the last chunk of their streams."""

from __future__ import annotations

from .counts import Counts, Reported, member


def reported(response: object) -> Reported:
    """Return what the response reports; it has no id, and older servers omit a cached prompt."""
    counts = Counts()
    is_embedding = member(response, "embeddings") is not None
    output_tokens = counts.read(response, "eval_count")
    return Reported(
        provider="ollama",
        model=member(response, "model"),
        response_id=None,
        faults=counts.faults,
        input_tokens=counts.read(response, "prompt_eval_count"),
        output_tokens=0 if is_embedding and output_tokens is None else output_tokens,
        cache_read_tokens=counts.read(response, "prompt_eval_cached_count"),
        token_type="embedding" if is_embedding else "llm",
    )
