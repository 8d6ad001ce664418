"""Google's generate_content and embed_content, of the Gemini API and Vertex AI."""

from __future__ import annotations

from typing import Final

from .counts import Counts, Reported, first, member
from .tiers import unusual_tier

_OUTPUT: Final = (
    "candidates_token_count",
    "candidatesTokenCount",
    "response_token_count",  # of live sessions
    "responseTokenCount",
)
_TRAFFIC: Final = {"on_demand_flex": "flex", "on_demand_priority": "priority"}


def reported(response: object, usage: object) -> Reported:
    """Return what the response reports: thoughts stand beside the output, tool use beside input."""
    counts = Counts()
    thoughts = counts.read(usage, "thoughts_token_count", "thoughtsTokenCount")
    input_tokens = counts.sum(
        counts.read(usage, "prompt_token_count", "promptTokenCount"),
        counts.read(usage, "tool_use_prompt_token_count", "toolUsePromptTokenCount"),
    )
    output_tokens = counts.sum(counts.read(usage, *_OUTPUT), thoughts)
    is_embedding = member(response, "embeddings") is not None
    traffic = first(member(usage, "traffic_type"), member(usage, "trafficType"))
    of_traffic = unusual_tier(traffic)
    tier = unusual_tier(member(usage, "service_tier"), member(usage, "serviceTier"))
    return Reported(
        # Only Vertex AI tells the type of traffic.
        provider="gcp.gemini" if traffic is None else "gcp.vertex_ai",
        model=first(member(response, "model_version"), member(response, "modelVersion")),
        response_id=first(member(response, "response_id"), member(response, "responseId")),
        faults=counts.faults,
        total=counts.read(usage, "total_token_count", "totalTokenCount"),
        input_tokens=input_tokens,
        output_tokens=0 if is_embedding and output_tokens is None else output_tokens,
        cache_read_tokens=counts.read(
            usage, "cached_content_token_count", "cachedContentTokenCount"
        ),
        cache_write_tokens=0,
        reasoning_tokens=thoughts,
        service_tier=tier if of_traffic is None else _TRAFFIC.get(of_traffic, of_traffic),
        token_type="embedding" if is_embedding else "llm",
    )
