"""A chain of LangChain: one callback handler tracks every model that runs in it.

pip install langchain-core
python examples/langchain_handler.py
"""

from __future__ import annotations

from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate

from token_tracking import usage_context
from token_tracking.integrations.langchain import TokenTrackingCallbackHandler


def answer(text: str) -> AIMessage:
    """Make an answer as the packages for providers do."""
    return AIMessage(
        text,
        usage_metadata={"input_tokens": 9, "output_tokens": 3, "total_tokens": 12},
        response_metadata={"model_provider": "openai", "model_name": "gpt-4o"},
    )


# A real service would have a ChatOpenAI or ChatAnthropic here.
model = FakeMessagesListChatModel(responses=[answer(text) for text in ("Fine.", "Too.", "Also.")])
chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | model
tracked = chain.with_config(callbacks=[TokenTrackingCallbackHandler(operation="chat")])  # the line


def main() -> None:
    """Ask for two tenants."""
    with usage_context(tenant_id="acme"):
        tracked.batch([{"question": "How are you?"}, {"question": "And now?"}])
    tracked.invoke({"question": "And you?"}, config={"metadata": {"tenant_id": "zeta"}})


if __name__ == "__main__":
    main()
