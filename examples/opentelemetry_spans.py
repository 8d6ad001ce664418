"""A service whose model calls are traced already: one more span processor tracks their usage.

pip install opentelemetry-sdk openai
OPENAI_API_KEY=... python examples/opentelemetry_spans.py
"""

from __future__ import annotations

from openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from token_tracking import usage_context
from token_tracking.integrations.opentelemetry import TokenTrackingSpanProcessor

provider = TracerProvider()
provider.add_span_processor(TokenTrackingSpanProcessor(operation="chat"))  # the line
trace.set_tracer_provider(provider)
tracer = trace.get_tracer(__name__)
client = OpenAI()


def ask(text: str) -> str | None:
    """Ask in a span; a real service would leave that to an instrumentation of its library."""
    with tracer.start_as_current_span("chat gpt-4o") as span:
        answer = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": text}]
        )
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.response.id": answer.id,
                "gen_ai.response.model": answer.model,
            }
        )
        if answer.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", answer.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", answer.usage.completion_tokens)
        return answer.choices[0].message.content


def main() -> None:
    """Ask for a tenant."""
    with usage_context(tenant_id="acme"):
        print(ask("How are you?"))  # noqa: T201


if __name__ == "__main__":
    main()
