"""LiteLLM's callback, with the real library; it takes seconds to import, so one worker does it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.databases import Database
from tests.support.instrumented import EVENT, KINDS, Recorded
from tests.support.provider_server import OPENAI_USAGE, ProviderServer
from tests.support.waiting import ended, until
from token_tracking import (
    SettingsError,
    UsageTracker,
    instrument,
    make_idempotency_key,
    usage_context,
)

if TYPE_CHECKING:
    from token_tracking.integrations.litellm import TokenTrackingLogger

pytestmark = [
    pytest.mark.xdist_group("providers"),
    # LiteLLM's own; as errors, they would become failures of its streams.
    pytest.mark.filterwarnings("ignore:.* using the `ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]

ASKS = {"stream": True, "stream_options": {"include_usage": True}}
STARTED = "select occurred_at from token_tracking_raw.usage_events"


def key(prompt: str, provider: str = "openai") -> dict[str, str]:
    return {"idempotency_key": make_idempotency_key(provider, f"chatcmpl-{prompt}")}


class Calls:
    """Makes calls with LiteLLM, and waits until its callbacks have run."""

    def __init__(self, server: ProviderServer, tracker: UsageTracker) -> None:
        import litellm

        self.litellm = litellm
        self.server = server
        self.tracker = tracker

    def asked(self, prompt: str, **more: Any) -> dict[str, Any]:
        model = more.pop("model", "openai/gpt-4o")
        is_anthropic = model.startswith(("anthropic", "gemini"))
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "api_base": self.server.url + ("" if is_anthropic else "/v1"),
            "api_key": "-",
            "num_retries": 0,
            **more,
        }

    def sync(self, prompt: str, **more: Any) -> Any:
        answer = self.litellm.completion(**self.asked(prompt, **more))
        return list(answer) if more.get("stream") else answer

    def of_async(self, prompt: str, **more: Any) -> Any:
        async def call() -> Any:
            answer = await self.litellm.acompletion(**self.asked(prompt, **more))
            return [chunk async for chunk in answer] if more.get("stream") else answer

        return self.run(call)

    def run(self, call: Callable[[], Any]) -> Any:
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

        async def main() -> Any:
            try:
                return await call()
            finally:
                await asyncio.sleep(0)
                await GLOBAL_LOGGING_WORKER.flush()

        return asyncio.run(main())

    def wait(self, number: int = 1) -> None:
        """Wait until so many events have ended: the hooks of plain calls run in threads."""
        until(lambda: ended(self.tracker.stats()) >= number)

    def nothing_else(self, already: int = 0) -> None:
        """Make sure that no other event comes: the one of a call that is made now is the last."""
        with usage_context(tenant_id="the-last"):
            self.sync("last")
        self.wait(already + 1)


@pytest.fixture
def use(provider_server: ProviderServer) -> Iterator[Callable[..., TokenTrackingLogger]]:
    """Return what registers a callback with LiteLLM."""
    import litellm

    from token_tracking.integrations.litellm import TokenTrackingLogger

    def registered(**given: Any) -> TokenTrackingLogger:
        logger = TokenTrackingLogger(**given)
        litellm.callbacks = [logger]
        return logger

    loop = asyncio.new_event_loop()  # streams would make one, and leave it open
    asyncio.set_event_loop(loop)
    yield registered
    litellm.logging_callback_manager._reset_all_callbacks()
    litellm.cache = None
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def calls(
    provider_server: ProviderServer,
    tracker: UsageTracker,
    use: Callable[..., TokenTrackingLogger],
) -> Calls:
    use(tenant_id="acme", tracker=tracker)
    return Calls(provider_server, tracker)


@pytest.mark.parametrize("more", [{}, ASKS], ids=["plain", "stream"])
@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_a_completion_is_recorded(
    way: Callable[..., Any], more: dict[str, Any], calls: Calls, recorded: Recorded
):
    before = datetime.now(UTC)
    way(calls, "c", **more)
    calls.wait()
    [(at,)] = recorded.database.rows(STARTED)
    assert before <= at <= datetime.now(UTC)
    assert recorded.event() == EVENT | key("c")
    stats = calls.tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.without_usage) == (1, 0, 0)


def test_a_completion_of_anthropic(calls: Calls, recorded: Recorded):
    answer = calls.sync("a", model="anthropic/claude-sonnet-4-5")
    calls.wait()
    event = recorded.event()
    assert event["idempotency_key"] == make_idempotency_key("anthropic", answer.id)
    assert event["provider"] == "anthropic"
    assert {name: event[name] for name in KINDS} == KINDS
    assert (event["cache_read_tokens"], event["cache_write_tokens"]) == (60, 10)
    assert event["cache_write_long_tokens"] == 7
    assert event["service_tier"] == "priority"


def test_a_stream_that_tells_its_usage_unasked(calls: Calls, recorded: Recorded):
    calls.sync("m", model="mistral/mistral-large", stream=True)
    calls.wait()
    event = recorded.event()
    assert (event["tokens"], event["provider"]) == (130, "mistral_ai")


@pytest.mark.parametrize("is_async", [False, True])
def test_embeddings(is_async: bool, calls: Calls, recorded: Recorded):
    asked = calls.asked("", model="openai/text-embedding-3-small", input=["e"])
    del asked["messages"]
    if is_async:
        calls.run(lambda: calls.litellm.aembedding(**asked))
    else:
        calls.litellm.embedding(**asked)
    calls.wait()
    event = recorded.event()
    assert event.pop("idempotency_key")
    assert event == {
        "tenant_id": "acme",
        "token_type": "embedding",
        "operation": "query",
        "metadata": {},
        "provider": "openai",
        "model": "text-embedding-3-small",
        "tokens": 8,
        "input_tokens": 8,
        "output_tokens": 0,
    }


def test_both_hooks_of_a_call_are_one_event(calls: Calls, recorded: Recorded):
    """LiteLLM calls both for a stream of responses."""
    asked = calls.asked("", input="r")
    del asked["messages"]
    with usage_context(tenant_id="zeta"):
        list(calls.litellm.responses(**asked, stream=True))
    calls.nothing_else(1)
    [last, event] = recorded.events()
    assert last["tenant_id"] == "the-last"
    assert (event["tokens"], event["cache_read_tokens"], event["provider"]) == (130, 60, "openai")
    stats = calls.tracker.stats()
    assert (stats.recorded, stats.duplicate) == (2, 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_hooks_without_a_common_state_are_one_event(
    is_async: bool, use: Any, tracker: UsageTracker, recorded: Recorded
):
    """The key absorbs what the hooks do not know of each other."""
    logger = use(tenant_id="acme", tracker=tracker)
    at = datetime.now()  # noqa: DTZ005  # as LiteLLM's
    details = {
        "call_type": "embedding",
        "custom_llm_provider": "openai",
        "litellm_call_id": "call-1",
        "model": "text-embedding-3-small",
    }
    response = {"model": "text-embedding-3-small", "data": [], "usage": {"prompt_tokens": 8}}
    for _ in range(2):
        if is_async:
            asyncio.run(logger.async_log_success_event(dict(details), response, at, at))
        logger.log_success_event(dict(details), response, at, at)
    assert recorded.event()["tokens"] == 8
    assert recorded.event()["idempotency_key"] == make_idempotency_key("openai", "call-1")


@pytest.fixture
def cache(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache hit makes LiteLLM import its proxy, which needs a package that reads sound files.
    monkeypatch.setitem(sys.modules, "soundfile", ModuleType("soundfile"))
    calls.litellm.cache = calls.litellm.Cache()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("more", [{}, ASKS], ids=["plain", "stream"])
@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_cache_hits_are_not_usage(
    way: Callable[..., Any],
    more: dict[str, Any],
    calls: Calls,
    provider_server: ProviderServer,
    recorded: Recorded,
):
    prompt = f"hit {way.__name__} {len(more)}"
    for tenant in ("acme", "other"):
        with usage_context(tenant_id=tenant):
            way(calls, prompt, caching=True, **more)
    assert len(provider_server.requests) == 1
    calls.nothing_else(1)
    assert [event["tenant_id"] for event in recorded.events()] == ["acme", "the-last"]


@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_what_failed_is_not_usage(way: Callable[..., Any], calls: Calls, recorded: Recorded):
    for more in ({}, ASKS):
        with pytest.raises(calls.litellm.BadRequestError):
            way(calls, "f", model="openai/gpt-4o-fails", **more)
    calls.nothing_else()
    assert [event["tenant_id"] for event in recorded.events()] == ["the-last"]
    assert calls.tracker.stats().cut_streams == 0


@pytest.mark.parametrize("model", ["openai/gpt-4o-cut", "anthropic/claude-sonnet-4-5-cut"])
@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_a_stream_that_is_cut_is_partial(
    way: Callable[..., Any], model: str, calls: Calls, recorded: Recorded
):
    with pytest.raises(calls.litellm.exceptions.MidStreamFallbackError):
        way(calls, "cut", model=model, **ASKS)
    calls.wait()
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "partial"})
    assert event["model"] == model.partition("/")[2]
    assert calls.tracker.stats().cut_streams == 1


@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_an_estimate_of_litellm_is_not_usage(
    way: Callable[..., Any], calls: Calls, recorded: Recorded
):
    """Of a stream that was not asked for its usage, LiteLLM tells one that it has estimated."""
    way(calls, "e", stream=True)
    calls.wait()
    event = recorded.event()
    assert (event["tokens"], event["metadata"]) == (0, {"usage": "missing"})
    assert event["model"] == "gpt-4o-2024-08-06"
    assert calls.tracker.stats().without_usage == 1


@pytest.mark.parametrize("more", [{}, ASKS], ids=["plain", "stream"])
@pytest.mark.parametrize("way", [Calls.sync, Calls.of_async], ids=["sync", "async"])
def test_whose_call_it_is(
    way: Callable[..., Any],
    more: dict[str, Any],
    use: Any,
    provider_server: ProviderServer,
    tracker: UsageTracker,
    recorded: Recorded,
):
    """Metadata come before the context in which the call was made, that before the logger's ids."""
    use(tenant_id="given", collection_id="given", operation="chat", tracker=tracker)
    calls = Calls(provider_server, tracker)
    metadata = {"agent_id": "a-1", "session_id": "s-1", "operation": "extraction"}
    with usage_context(tenant_id="acme", agent_id="context"):
        way(calls, "ids", metadata=metadata, **more)
    calls.wait()
    assert recorded.event() == EVENT | key("ids") | {
        "agent_id": "a-1",
        "conversation_id": "s-1",
        "collection_id": "given",
        "operation": "extraction",
    }


def test_a_call_of_nobody_is_counted_and_kept(
    use: Any,
    provider_server: ProviderServer,
    tracker: UsageTracker,
    emptied: Database,
    recorded: Recorded,
):
    use(tracker=tracker)
    calls = Calls(provider_server, tracker)
    calls.sync("nobody")
    calls.wait()
    assert recorded.events() == []
    assert tracker.stats().without_tenant == 1
    [(payload,)] = emptied.rows("select payload from token_tracking_raw.usage_event_rejections")
    assert payload["tokens"] == 130


PROXY = {
    "user_api_key_hash": "hash",
    "user_api_key_team_id": "team",
    "user_api_key_user_id": "user",
    "user_api_key_end_user_id": None,
    "user_api_key_alias": "alias",
    "user_api_key_org_id": "org",
    # What the client of the proxy writes.
    "tenant_id": "victim",
    "agent_id": "agent",
    "session_id": "s-1",
}
PROXIED = [
    ({}, {}, "team", None),
    ({}, {"user_api_key_team_id": None}, "user", None),
    # A client writes it into the request.
    ({}, {"user_api_key_team_id": None, "user_api_key_end_user_id": "victim"}, "user", None),
    ({"proxy_tenant": ("end_user",)}, {"user_api_key_end_user_id": "named"}, "named", None),
    ({}, {"user_api_key_team_id": None, "user_api_key_user_id": ""}, "hash", None),
    ({"proxy_tenant": ("key_alias",)}, {}, "alias", None),
    ({"proxy_tenant": ("org_id", "team_id")}, {"user_api_key_org_id": None}, "team", None),
    ({"proxy_tenant": ("tenant_id", "team_id")}, {}, "victim", "agent"),
    ({"proxy_tenant": ("tenant_id", "team_id")}, {"tenant_id": None}, "team", "agent"),
    ({"proxy_tenant": ("project_id",), "tenant_id": "given"}, {}, "given", None),
]


@pytest.mark.parametrize(("given", "metadata", "tenant", "agent"), PROXIED)
def test_whose_call_through_the_proxy_it_is(
    given: dict,
    metadata: dict,
    tenant: str,
    agent: str | None,
    use: Any,
    provider_server: ProviderServer,
    tracker: UsageTracker,
    recorded: Recorded,
):
    """The proxy passes the request and what it knows of the key to LiteLLM, as here."""
    use(**given, tracker=tracker)
    calls = Calls(provider_server, tracker)
    request = {"url": "/chat/completions", "method": "POST", "body": {}, "headers": {}}
    calls.of_async("p", metadata=PROXY | metadata, proxy_server_request=request)
    calls.wait()
    event = recorded.event()
    told = (event["tenant_id"], event.get("agent_id"), event["conversation_id"])
    assert told == (tenant, agent, "s-1")


def test_the_model_is_not_the_name_that_the_proxy_gives_it(
    use: Any, tracker: UsageTracker, recorded: Recorded
):
    """The proxy writes its name of a model into the response before it calls the hooks."""
    import litellm

    logger = use(tenant_id="acme", tracker=tracker)
    at = datetime.now(UTC)
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    response = litellm.EmbeddingResponse(model="mine", data=[], usage=litellm.Usage(**usage))
    details = {
        "call_type": "aembedding",
        "custom_llm_provider": "openai",
        "litellm_call_id": "call-2",
        "model": "text-embedding-3-small",
        "standard_logging_object": {"model_group": "mine"},
    }
    logger.log_success_event(details, response, at, at)
    event = recorded.event()
    assert (event["model"], event["token_type"]) == ("text-embedding-3-small", "embedding")


def test_the_proxy_finds_its_logger():
    """As LiteLLM's proxy does with `callbacks` of its YAML file."""
    from litellm.proxy.types_utils.utils import get_instance_fn

    from token_tracking.integrations.litellm import TokenTrackingLogger

    found = get_instance_fn("token_tracking.integrations.litellm.proxy_logger", "/etc/config.yaml")
    assert isinstance(found, TokenTrackingLogger)


@pytest.mark.parametrize("names", [("team",), "team_id"])
def test_an_unknown_name_is_refused(names: Any, use: Any):
    with pytest.raises(SettingsError, match=r"must be a sequence of names among api_key, .*user"):
        use(proxy_tenant=names)


@pytest.mark.parametrize("more", [{}, ASKS], ids=["plain", "stream"])
def test_an_instrumented_client_below_is_the_same_event(
    more: dict[str, Any], calls: Calls, recorded: Recorded
):
    from openai import OpenAI

    url = f"{calls.server.url}/v1"
    with OpenAI(base_url=url, api_key="-") as client:
        instrument(client, tenant_id="acme", tracker=calls.tracker)
        calls.sync("same", client=client, **more)
        calls.wait(2)
    assert recorded.event() == EVENT | key("same")
    stats = calls.tracker.stats()
    assert (stats.recorded, stats.duplicate, stats.conflict) == (1, 1, 0)


def test_the_row_of_the_spend_log_is_the_same_event(calls: Calls, recorded: Recorded):
    """`load --from litellm` gives it the same key, and the same tokens."""
    from token_tracking.loading.formats.litellm import LITELLM

    answer = calls.sync("logged")
    calls.wait()
    row = {
        "request_id": answer.id,
        "call_type": "completion",
        "custom_llm_provider": "openai",
        "model": "gpt-4o-2024-08-06",
        "startTime": "2026-01-01T00:00:00+00:00",
        "team_id": "acme",
        "prompt_tokens": 100,
        "completion_tokens": 30,
        "total_tokens": 130,
        "metadata": {"usage_object": OPENAI_USAGE | {"service_tier": "priority"}},
    }
    loaded = LITELLM.event_of(row)
    event = recorded.event()
    same = {name: value for name, value in loaded.items() if value is not None}
    del same["occurred_at"]
    assert same == {name: event[name] for name in same}
    assert {"tenant_id", "idempotency_key", "tokens", "model"} < set(same)


def test_a_fault_stays_inside(
    calls: Calls,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("token_tracking.integrations.litellm._members", broken)
    monkeypatch.setattr("token_tracking.integrations.litellm.current_context", broken)
    assert calls.of_async("fault").choices[0].message.content == "Hello world!"
    until(lambda: caplog.text.count("could not be tracked, RuntimeError") == 2)
    assert recorded.events() == []
    assert "a secret" not in caplog.text


def test_other_calls_are_not_tracked(use: Any, tracker: UsageTracker, recorded: Recorded, caplog):
    caplog.set_level("INFO", "token_tracking")
    logger = use(tenant_id="acme", tracker=tracker)
    response = {"id": "batch_1", "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
    at = datetime.now(UTC)
    for _ in range(2):
        logger.log_success_event({"call_type": "aretrieve_batch"}, response, at, at)
    assert recorded.events() == []
    assert caplog.text.count("calls of type aretrieve_batch are not tracked") == 1
