"""A script that calls models with LiteLLM: one line tracks every call, plain and streamed.

pip install litellm
OPENAI_API_KEY=... python examples/litellm_callback.py
"""

from __future__ import annotations

import litellm

from token_tracking import usage_context
from token_tracking.integrations.litellm import TokenTrackingLogger

litellm.callbacks = [TokenTrackingLogger(operation="chat")]  # the line


def main() -> None:
    """Ask for two tenants."""
    with usage_context(tenant_id="acme"):
        answer = litellm.completion(
            model="openai/gpt-4o", messages=[{"role": "user", "content": "How are you?"}]
        )
    print(answer.choices[0].message.content)  # noqa: T201
    chunks = litellm.completion(
        model="openai/gpt-4o",
        messages=[{"role": "user", "content": "And you?"}],
        stream=True,
        stream_options={"include_usage": True},  # else LiteLLM can only estimate
        metadata={"tenant_id": "zeta", "conversation_id": "c-7"},
    )
    words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    print("".join(words))  # noqa: T201


if __name__ == "__main__":
    main()
