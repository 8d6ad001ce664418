"""A FastAPI service with an OpenAI client: every call is tracked, for the tenant of its request.

pip install 'fastapi[standard]' openai
fastapi dev examples/fastapi_openai.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, Header
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

from token_tracking import default_tracker, instrument, usage_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

client = instrument(AsyncOpenAI(), operation="chat")  # the first line
app = FastAPI()


async def tenant(x_tenant: Annotated[str, Header()]) -> AsyncIterator[None]:
    """Set the tenant for all calls of this request."""
    with usage_context(tenant_id=x_tenant):  # the second line
        yield


@app.get("/ask", dependencies=[Depends(tenant)])
async def ask(text: str) -> str | None:
    """Answer a question."""
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": text}]
    )
    return answer.choices[0].message.content


@app.get("/stream", dependencies=[Depends(tenant)])
async def stream(text: str) -> StreamingResponse:
    """Answer a question word by word."""
    chunks = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": text}], stream=True
    )

    async def words() -> AsyncIterator[str]:
        async for chunk in chunks:
            yield chunk.choices[0].delta.content or ""

    return StreamingResponse(words())


@app.get("/usage-statistics")
async def usage_statistics() -> dict[str, int]:
    """Return what to watch: streams whose usage is not wholly known, and calls of nobody."""
    stats = default_tracker().stats()
    return {
        "cut_streams": stats.cut_streams,
        "without_usage": stats.without_usage,
        "without_tenant": stats.without_tenant,
    }
