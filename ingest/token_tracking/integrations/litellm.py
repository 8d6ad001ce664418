"""LiteLLM: a callback that tracks each call that LiteLLM or its proxy made.

LiteLLM tells of a call in `kwargs`, which all hooks of the call share, and as its response, in
OpenAI's form whoever answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from litellm.integrations.custom_logger import CustomLogger

from ..client.context import current_context
from ..client.logs import SafeLogger
from ..errors import SettingsError
from ..responses.counts import first, member
from ..responses.identity import litellm_key
from ..responses.providers import text_of_name
from .listener import Listener, ids_told, never_raising

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from ..tracker import UsageTracker

logger = SafeLogger(__name__)

Json = Mapping[str, object]

_STATE: Final = "token_tracking"
_NOTHING: Final[Json] = {}
# What the proxy knows about who called it, by the names of its spend log.
_PROXY_NAMES: Final = {
    "api_key": "user_api_key_hash",
    "end_user": "user_api_key_end_user_id",
    "key_alias": "user_api_key_alias",
    "org_id": "user_api_key_org_id",
    "project_id": "user_api_key_project_id",
    "team_alias": "user_api_key_team_alias",
    "team_id": "user_api_key_team_id",
    "user": "user_api_key_user_id",
}
_CALLER: Final = "tenant_id"
_MODEL_CALLS: Final = re.compile(
    r"a?(completion|text_completion|embedding|responses|generate_content|generate_content_stream)"
    r"|anthropic_messages"
)
# Their streams tell the usage unasked. LiteLLM estimates that of others, without saying so.
_TELL_UNASKED: Final = frozenset(
    {
        *("anthropic", "aws.bedrock", "cohere", "gcp.gemini", "gcp.vertex_ai", "mistral_ai"),
        "ollama",
    }
)
_said: Final[set[object]] = set()


@dataclass(slots=True)
class _State:
    """What the hooks of one call share: the ids where it was made, and what was recorded."""

    context: Json
    recorded: set[str] = field(default_factory=set[str])


class TokenTrackingLogger(CustomLogger):
    """Tracks every call that LiteLLM makes: `litellm.callbacks = [TokenTrackingLogger()]`.

    A call's ids are those of its `metadata` (tenant_id, agent_id, conversation_id, collection_id,
    operation), or else those of the `usage_context` in which it was made, or else those given here.
    The hooks wait for nothing and never raise; `UsageTracker.stats` counts what becomes of the
    events. Cache hits and failed calls are not usage. A stream that was cut is recorded with 0
    tokens and `metadata.usage` "partial", a response that does not tell its usage with "missing".

    Args:
        tenant_id: for calls that have none, like the other ids.
        agent_id: as above.
        conversation_id: as above.
        collection_id: as above.
        operation: as above; default "query".
        proxy_tenant: which of the names that LiteLLM's proxy knows is the tenant: the first that a
            call has. "tenant_id" is that of the call's metadata, which every client of the proxy
            can choose, so name it only if all of them are trusted; their agent_id then counts, too.
        tracker: instead of the default one.

    Raises:
        SettingsError: `proxy_tenant` has an unknown name.

    """

    def __init__(
        self,
        *,
        tenant_id: str | UUID | None = None,
        agent_id: str | UUID | None = None,
        conversation_id: str | UUID | None = None,
        collection_id: str | UUID | None = None,
        operation: str | None = None,
        proxy_tenant: Sequence[str] = ("team_id", "user", "api_key"),
        tracker: UsageTracker | None = None,
    ) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        known = {_CALLER, *_PROXY_NAMES}
        unknown = [name for name in proxy_tenant if name not in known]
        if unknown:
            message = (
                f"TokenTrackingLogger: proxy_tenant={proxy_tenant!r}; "
                f"must be a sequence of names among {', '.join(sorted(known))}"
            )
            raise SettingsError(message)
        self._proxy_tenant = tuple(proxy_tenant)
        self._listener = Listener(
            {
                "tenant_id": tenant_id,
                "agent_id": agent_id,
                "conversation_id": conversation_id,
                "collection_id": collection_id,
                "operation": operation,
            },
            tracker,
        )

    def log_pre_api_call(self, model: object, messages: object, kwargs: dict[str, object]) -> None:  # noqa: ARG002
        """Note the ids of a call that begins: streams end in other contexts."""
        self._begun(kwargs)

    def log_success_event(
        self, kwargs: Json, response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Track a response."""
        self._ended(kwargs, response_obj, start_time, end_time)

    async def async_log_success_event(
        self, kwargs: Json, response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Track the response of an asynchronous call."""
        self._ended(kwargs, response_obj, start_time, end_time)

    def log_failure_event(
        self, kwargs: Json, response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Track a stream that was cut; other failures are not usage."""
        self._failed(kwargs, response_obj, start_time, end_time)

    async def async_log_failure_event(
        self, kwargs: Json, response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Track an asynchronous stream that was cut."""
        self._failed(kwargs, response_obj, start_time, end_time)

    @never_raising
    def _begun(self, kwargs: dict[str, object]) -> None:
        kwargs[_STATE] = _State(current_context())

    @never_raising
    def _ended(self, kwargs: Json, response: object, start_time: object, _: object) -> None:
        if _is_cache_hit(kwargs):
            return
        kind = kwargs.get("call_type")
        if not isinstance(kind, str) or not _MODEL_CALLS.fullmatch(kind):
            if kind not in _said:
                _said.add(kind)
                logger.info("LiteLLM calls of type %s are not tracked (said once)", kind)
            return
        self._record(kwargs, response, start_time, is_cut=False)

    @never_raising
    def _failed(self, kwargs: Json, response: object, start_time: object, _: object) -> None:
        # Without a first chunk, it is the request that failed.
        if kwargs.get("stream") and kwargs.get("completion_start_time") is not None:
            self._record(kwargs, response, start_time, is_cut=True)

    def _record(self, kwargs: Json, response: object, started: object, *, is_cut: bool) -> None:
        log = _members(kwargs, "standard_logging_object")
        call_id = first(member(response, "id"), log.get("id"), kwargs.get("litellm_call_id"))
        state = kwargs.get(_STATE)
        if not isinstance(call_id, str):
            call_id = str(call_id)
        if isinstance(state, _State):
            if call_id in state.recorded:
                return
            state.recorded.add(call_id)
        provider = text_of_name(kwargs.get("custom_llm_provider"))
        at = _started(log, started)
        call = self._listener.call(
            provider,
            kwargs.get("model"),
            call_id,
            state.context if isinstance(state, _State) else current_context(),
            self._ids(kwargs, log),
            occurred_at=at,
            idempotency_key=litellm_key(provider, call_id, at),
        )
        if call is None:
            return
        if is_cut:
            call.cut({"id": call_id})
        elif _tells_usage(kwargs, provider, response):
            call.answered(_as_served(response, kwargs))
        else:
            call.answered_without_usage({"id": call_id, "model": _served_model(response, kwargs)})

    def _ids(self, kwargs: Json, log: Json) -> dict[str, object]:
        parameters = _members(kwargs, "litellm_params")
        metadata = {
            **_members(parameters, "litellm_metadata"),
            **_members(parameters, "metadata"),
        }
        told = ids_told(metadata)
        if not parameters.get("proxy_server_request"):
            return told
        # Whoever calls the proxy writes the metadata, and must not choose who pays.
        claimed = told.pop("tenant_id", None)
        if _CALLER not in self._proxy_tenant:
            told.pop("agent_id", None)
        known = {**metadata, **_members(log, "metadata")}
        names = [
            claimed if name == _CALLER else known.get(_PROXY_NAMES[name]) or None
            for name in self._proxy_tenant
        ]
        tenant = first(*names)
        return told if tenant is None else {**told, "tenant_id": tenant}


def _is_cache_hit(kwargs: Json) -> bool:
    log = _members(kwargs, "standard_logging_object")
    return (
        kwargs.get("cache_hit") is True
        or log.get("cache_hit") is True
        or "_cache_hit" in str(log.get("id"))
    )


def _tells_usage(kwargs: Json, provider: str | None, response: object) -> bool:
    usage = member(response, "usage")
    if usage is None:
        return False
    if not kwargs.get("stream") or member(response, "choices") is None:
        return True
    options = first(
        member(kwargs.get("optional_params"), "stream_options"), kwargs.get("stream_options")
    )
    return (
        member(options, "include_usage") is True
        or provider in _TELL_UNASKED
        or member(usage, "prompt_tokens_details") is not None  # LiteLLM estimates only totals
    )


def _as_served(response: object, kwargs: Json) -> object:
    """Return the response with the model and the tier that answered."""
    usage = member(response, "usage")
    if usage is None:
        return response
    return {
        "id": member(response, "id"),
        "model": _served_model(response, kwargs),
        "choices": member(response, "choices"),
        "data": member(response, "data"),
        "usage": usage,
        "service_tier": first(member(response, "service_tier"), member(usage, "service_tier")),
    }


def _served_model(response: object, kwargs: Json) -> object:
    """Return the model that answered, not the name that the proxy's clients know it by.

    The proxy writes that name into the response, and a stream's response has the one that was
    asked.
    """
    served = member(member(response, "_hidden_params"), "provider_response_model")
    named = member(response, "model")
    group = _members(kwargs, "standard_logging_object").get("model_group")
    asked = kwargs.get("model") if named == group else None
    return first(served, asked, named)


def _started(log: Json, start_time: object) -> datetime:
    """Return when the call began; LiteLLM's own datetimes have no time zone."""
    if isinstance(start_time, datetime):
        return start_time.astimezone(UTC)
    seconds = log.get("startTime")
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, float) else datetime.now(UTC)


def _members(source: Json, name: str) -> Json:
    found = source.get(name)
    return cast("Json", found) if isinstance(found, Mapping) else _NOTHING


proxy_logger: Final = TokenTrackingLogger()
