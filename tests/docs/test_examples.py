"""The examples run, and record what they claim."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys

import pytest
from httpx import ASGITransport, AsyncClient

from tests.support import ROOT
from tests.support.databases import Database
from tests.support.provider_server import provider_server

EXAMPLES = ROOT / "examples"
BY_TENANT = """
    select tenant_id, sum(tokens)::int, operation from token_tracking_raw.usage_events
    group by 1, 3 order by 1
"""
TOTAL = "select count(*)::int, sum(tokens)::int from token_tracking_raw.usage_events"


def run(name: str, database: Database) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env={"PYTHONPATH": ":".join(sys.path), "TOKEN_TRACKING_DSN": database.url},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_script_that_runs_twice_counts_once(database: Database):
    assert "recorded=50" in run("nightly_script.py", database)
    assert "duplicate=50" in run("nightly_script.py", database)
    assert database.rows(TOTAL) == [(50, 12750)]


def test_workers_that_are_forked(database: Database):
    run("prefork_worker.py", database)
    assert database.rows(TOTAL) == [(61, 3 * sum(range(100, 120)) + 12)]


def test_a_service_with_lifespan(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN_TRACKING_DSN", database.url)
    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "fastapi_service.py")
    assert spec is not None
    assert spec.loader is not None
    service = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "service", service)
    spec.loader.exec_module(service)

    async def main() -> None:
        transport = ASGITransport(service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            AsyncClient(transport=transport, base_url="http://service") as client,
        ):
            for message in ("m1", "m2", "m1"):
                answer = await client.post(
                    "/ask",
                    headers={"X-Tenant": "acme"},
                    json={"text": "how are you", "message_id": message},
                )
                assert answer.json() == {"answer": "HOW ARE YOU"}
            statistics = await client.get("/usage-statistics")
            ended = {"recorded": 2, "spooled": 0, "not_counted": 0, "refused": 0}
            assert statistics.json() == ended

    asyncio.run(main())
    rows = "select tenant_id, tokens, operation from token_tracking_raw.usage_events"
    assert database.rows(rows) == [("acme", 6, "chat")] * 2


ASK = """
import asyncio
from httpx import ASGITransport, AsyncClient
import fastapi_openai as service

async def main():
    transport = ASGITransport(service.app)
    async with AsyncClient(transport=transport, base_url="http://service") as client:
        for tenant, path in (("acme", "/ask"), ("zeta", "/stream")):
            answer = await client.get(path, params={"text": tenant}, headers={"X-Tenant": tenant})
            print(answer.text)
        print((await client.get("/usage-statistics")).json())

asyncio.run(main())
"""


def asking(database: Database, *arguments: str) -> list[str]:
    """Run Python with a client of a local server in OpenAI's form; return the lines it prints."""
    for server in provider_server():
        done = subprocess.run(
            [sys.executable, *arguments],
            env={
                "PYTHONPATH": ":".join([str(EXAMPLES), *sys.path]),
                "TOKEN_TRACKING_DSN": database.url,
                "OPENAI_BASE_URL": f"{server.url}/v1",
                "OPENAI_API_KEY": "-",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                # LiteLLM imports for seconds while the first event is written.
                "TOKEN_TRACKING_MAX_WAIT": "60",
            },
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.xdist_group("instrumentation")
def test_a_service_with_an_instrumented_client(database: Database):
    assert asking(database, "-c", ASK) == [
        '"Hello world!"',
        "Hello world!",
        "{'cut_streams': 0, 'without_usage': 0, 'without_tenant': 0}",
    ]
    assert database.rows(BY_TENANT) == [("acme", 130, "chat"), ("zeta", 130, "chat")]


@pytest.mark.xdist_group("instrumentation")
def test_a_script_with_litellm(database: Database):
    assert asking(database, str(EXAMPLES / "litellm_callback.py")) == ["Hello world!"] * 2
    assert database.rows(BY_TENANT) == [("acme", 130, "chat"), ("zeta", 130, "chat")]


@pytest.mark.xdist_group("instrumentation")
def test_a_service_with_spans(database: Database):
    assert asking(database, str(EXAMPLES / "opentelemetry_spans.py")) == ["Hello world!"]
    assert database.rows(BY_TENANT) == [("acme", 130, "chat")]


def test_a_chain_of_langchain(database: Database):
    run("langchain_handler.py", database)
    assert database.rows(BY_TENANT) == [("acme", 24, "chat"), ("zeta", 12, "chat")]
