"""`usage_context` around a `yield`: its end never raises, and no tenant reaches another's calls."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient

from tests.support.databases import Database
from token_tracking import UsageTracker, usage_context
from token_tracking.client.context import current_context

ROWS = "select tenant_id, tokens::int from token_tracking_raw.usage_events order by 1, 2"
REASONS = "select reason from token_tracking_raw.usage_event_rejections"


@pytest.fixture
def tracker(emptied: Database) -> Iterator[UsageTracker]:
    with UsageTracker(dsn=emptied.url) as started:
        yield started


def answer_of(app: FastAPI, path: str) -> str:
    async def main() -> str:
        transport = ASGITransport(app)  # raises what the app raises
        async with AsyncClient(transport=transport, base_url="http://service") as client:
            answer = await client.get(path)
            assert answer.status_code == 200
            return answer.text

    return asyncio.run(main())


def test_a_plain_dependency_does_not_fail_and_is_told(
    emptied: Database, tracker: UsageTracker, caplog: pytest.LogCaptureFixture
):
    def plain() -> Iterator[None]:
        with usage_context(tenant_id="acme"):
            yield

    async def awaited() -> AsyncIterator[None]:
        with usage_context(tenant_id="acme"):
            yield

    app = FastAPI()

    @app.get("/plain", dependencies=[Depends(plain)])
    async def _() -> bool:
        return await tracker.track_token_usage(tokens=1)

    @app.get("/async", dependencies=[Depends(awaited)])
    async def _() -> bool:
        return await tracker.track_token_usage(tokens=2)

    assert answer_of(app, "/plain") == "false"
    assert answer_of(app, "/async") == "true"
    assert emptied.rows(ROWS) == [("acme", 2)]
    [(reason,)] = emptied.rows(REASONS)
    assert reason.startswith("tenant_id: missing")
    assert "plain def dependency" in reason
    assert "plain def dependency" in caplog.text


def test_a_streamed_response_ends_without_an_error(emptied: Database, tracker: UsageTracker):
    app = FastAPI()

    def plain() -> Iterator[str]:
        with usage_context(tenant_id="acme"):
            for n in range(3):
                yield f"{n}"
            tracker.track_token_usage_sync(tokens=1, tenant_id="acme")

    async def awaited() -> AsyncIterator[str]:
        with usage_context(tenant_id="acme"):
            for n in range(3):
                yield f"{n}"
            await tracker.track_token_usage(tokens=2)

    @app.get("/plain")
    async def _() -> StreamingResponse:
        return StreamingResponse(plain())

    @app.get("/async")
    async def _() -> StreamingResponse:
        return StreamingResponse(awaited())

    assert answer_of(app, "/plain") == "012"
    assert answer_of(app, "/async") == "012"
    assert emptied.rows(ROWS) == [("acme", 1), ("acme", 2)]


async def steps(tenant: str) -> AsyncIterator[str]:
    with usage_context(tenant_id=tenant):
        for _ in range(3):
            yield tenant


async def step(generator: AsyncIterator[str]) -> str:
    return await anext(generator)


@pytest.mark.parametrize("end", ["a task a step", "closed in another task", "collected"])
def test_a_generator_that_ends_elsewhere_raises_nothing(end: str):
    async def main() -> list[dict[str, object]]:
        errors: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))
        generator = steps("acme")
        assert await asyncio.create_task(step(generator)) == "acme"
        if end == "a task a step":
            for _ in range(2):
                await asyncio.create_task(step(generator))
            with pytest.raises(StopAsyncIteration):
                await asyncio.create_task(step(generator))
        elif end == "closed in another task":
            await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        else:
            del generator
            gc.collect()
            await asyncio.sleep(0.01)
        assert current_context() == {}
        return errors

    assert asyncio.run(main()) == []


def test_a_worker_that_began_a_request_keeps_nothing_of_it():
    """The worker runs the next request in the same context; the first one ended elsewhere."""

    async def main() -> None:
        generator = steps("acme")
        await step(generator)  # in this task
        assert current_context() == {"tenant_id": "acme"}
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
        assert current_context() == {}
        seen: list[object] = []

        async def next_request() -> None:
            seen.append(dict(current_context()))

        await asyncio.create_task(next_request())
        assert seen == [{}]
        with usage_context(agent_id="agent"):
            assert current_context() == {"agent_id": "agent"}
        assert current_context() == {}

    asyncio.run(main())


def test_requests_that_are_interleaved_leave_nothing_behind():
    async def main() -> None:
        first, second = steps("acme"), steps("other")
        await step(first)
        await step(second)
        await first.aclose()  # type: ignore[attr-defined]
        assert current_context() == {"tenant_id": "other"}
        await second.aclose()  # type: ignore[attr-defined]
        assert current_context() == {}

    asyncio.run(main())


def test_an_ended_request_gives_nothing_to_a_later_block():
    async def main() -> None:
        generator = steps("acme")
        await step(generator)
        with usage_context(agent_id="agent"):
            await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
            assert current_context() == {"agent_id": "agent"}
        assert current_context() == {}

    asyncio.run(main())


def test_a_task_that_outlives_its_block_keeps_its_context():
    async def main() -> None:
        ended = asyncio.Event()

        async def background() -> dict[str, object]:
            await ended.wait()
            return dict(current_context())

        with usage_context(tenant_id="acme"):
            task = asyncio.create_task(background())
        ended.set()
        assert await task == {"tenant_id": "acme"}

    asyncio.run(main())


def test_a_context_that_outlives_many_requests_does_not_grow():
    context = contextvars.copy_context()
    for _ in range(10_000):
        block = usage_context(tenant_id="acme")
        context.run(block.__enter__)
        block.__exit__(None, None, None)
    assert context.run(current_context) == {}
    [chain] = [value for variable, value in context.items() if variable.name == "usage_context"]
    length = 0
    while chain is not None:
        length, chain = length + 1, chain.outer
    assert length < 3
