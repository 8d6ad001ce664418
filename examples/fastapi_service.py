"""A FastAPI service: the tracker starts and ends with the application.

pip install 'fastapi[standard]'
fastapi dev examples/fastapi_service.py
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, Header, Request
from pydantic import BaseModel

from token_tracking import UsageTracker, usage_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect before the first request; write pending events before the process ends."""
    async with UsageTracker() as tracker:
        app.state.tracker = tracker
        yield


app = FastAPI(lifespan=lifespan)


async def tenant(x_tenant: Annotated[str, Header()]) -> AsyncIterator[None]:
    """Set the tenant for all calls of this request."""
    with usage_context(tenant_id=x_tenant):
        yield


class Question(BaseModel):
    """What a user asks."""

    text: str
    message_id: str


@app.post("/ask", dependencies=[Depends(tenant)])
async def ask(question: Question, request: Request) -> dict[str, str]:
    """Answer a question, and record its token usage."""
    answer = question.text.upper()  # a real service would call a model here
    await request.app.state.tracker.track_token_usage(
        input_tokens=len(question.text.split()),
        output_tokens=len(answer.split()),
        model="gpt-4o",
        operation="chat",
        idempotency_key=question.message_id,  # a retried request counts once
    )
    return {"answer": answer}


@app.get("/usage-statistics")
async def usage_statistics(request: Request) -> dict[str, int]:
    """Return how this process's calls ended, for monitoring."""
    stats = request.app.state.tracker.stats()
    return {
        "recorded": stats.recorded,
        "spooled": stats.spooled,
        "not_counted": stats.conflict + stats.rejected,  # somebody should look at these calls
        "refused": stats.refused,  # neither recorded nor kept anywhere
    }
