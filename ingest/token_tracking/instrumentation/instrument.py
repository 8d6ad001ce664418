"""`instrument` and `uninstrument`: which client is of which library, without importing any."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

from ..errors import SettingsError
from .call import Instrumentation

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from ..tracker import UsageTracker

_STATE: Final = "_token_tracking"
_OPENAI: Final = frozenset({"OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI"})
_ANTHROPIC: Final = frozenset(
    {"Anthropic", "AsyncAnthropic", "AnthropicVertex", "AsyncAnthropicVertex"}
)

Client = TypeVar("Client")


class _State:
    """What was done to a client."""

    def __init__(self, instrumentation: Instrumentation, undo: list[Callable[[], None]]) -> None:
        self.instrumentation = instrumentation
        self.undo = undo


def instrument(
    client: Client,
    *,
    tenant_id: str | UUID | None = None,
    agent_id: str | UUID | None = None,
    conversation_id: str | UUID | None = None,
    collection_id: str | UUID | None = None,
    operation: str | None = None,
    provider: str | None = None,
    tracker: UsageTracker | None = None,
    stream_usage: bool = True,
) -> Client:
    """Track every call of a client from now on, streams too; return the client.

    Clients are those of openai (`OpenAI`, `AsyncOpenAI` and Azure's), anthropic, google-genai,
    mistralai and boto3's `bedrock-runtime`. The caller gets the same objects at the same time; a
    call neither waits for the database nor fails because of the tracking. `UsageTracker.stats`
    counts what becomes of the events. Instrumenting again does nothing.

    The event's ids are those of the `usage_context` in which the call was made, or else those given
    here. A call without a tenant is kept as a rejection. The key is made of provider and response
    id, as that of `track_response`.

    A stream that is broken off, closed early or dropped is recorded with what is known of it and
    `metadata.usage` "partial"; a response that does not tell its usage, with "missing".

    Args:
        client: the client; only this object changes, and its later copies.
        tenant_id: for calls outside of any `usage_context` that gives one, like the other ids.
        agent_id: as above.
        conversation_id: as above.
        collection_id: as above.
        operation: as above; default "query".
        provider: who answers, if the client cannot tell: a server of your own that speaks OpenAI's
            language counts as "openai".
        tracker: instead of the default one.
        stream_usage: whether to ask for the usage of OpenAI's chat streams, with
            `stream_options`, and to hide the additional chunk, if the caller does not ask for it.
            False for servers that reject this option: their streams tell no usage, and would get
            each request twice.

    Raises:
        SettingsError: the client is none of these.

    Example:
        >>> client = instrument(AsyncOpenAI())  # doctest: +SKIP

    """
    given = {
        "tenant_id": tenant_id,
        "agent_id": agent_id,
        "conversation_id": conversation_id,
        "collection_id": collection_id,
        "operation": operation,
    }
    _instrument(
        client,
        Instrumentation(
            {name: value for name, value in given.items() if value is not None},
            tracker,
            provider,
            stream_usage,
        ),
    )
    return client


def uninstrument(client: Client) -> Client:
    """Undo `instrument`; return the client. Streams that have begun are still tracked.

    Copies that were made in between are clients of their own.
    """
    state = _state_of(client)
    if state is not None:
        state.instrumentation.is_active = False
        for undo in reversed(state.undo):
            undo()
        delattr(client, _STATE)
    return client


def _instrument(client: object, instrumentation: Instrumentation) -> object:
    if _state_of(client) is not None:
        return client
    setattr(client, _STATE, _State(instrumentation, _undo_of(client, instrumentation)))
    return client


def _state_of(client: object) -> _State | None:
    state: object = getattr(client, "__dict__", {}).get(_STATE)
    return state if isinstance(state, _State) else None


def _undo_of(client: object, instrumentation: Instrumentation) -> list[Callable[[], None]]:
    for kind in type(client).__mro__:
        library, name = kind.__module__.partition(".")[0], kind.__name__
        if (library == "openai" and name in _OPENAI) or (
            library == "anthropic" and name in _ANTHROPIC
        ):
            from .openai_anthropic import instrument_openai_anthropic

            def instrument_copy(copied: object) -> object:
                return _instrument(copied, replace(instrumentation, is_active=True))

            return instrument_openai_anthropic(client, name, instrumentation, instrument_copy)
        if kind.__module__.startswith("google.genai.") and name == "Client":
            from .google import instrument_google

            return instrument_google(client, instrumentation)
        if library == "mistralai" and name == "Mistral":
            from .mistral import instrument_mistral

            return instrument_mistral(client, instrumentation)
        if library == "aiobotocore":
            break  # a subclass of botocore's, whose streams are of another kind
        if library == "botocore" and _service(client) == "bedrock-runtime":
            from .bedrock import instrument_bedrock

            return instrument_bedrock(client, instrumentation)
    message = (
        f"instrument: {type(client).__module__}.{type(client).__qualname__}; must be a client of "
        "openai, anthropic, google-genai, mistralai or boto3's bedrock-runtime"
    )
    raise SettingsError(message)


def _service(client: object) -> object:
    meta = cast("object", getattr(client, "meta", None))
    model = cast("object", getattr(meta, "service_model", None))
    return cast("object", getattr(model, "service_name", None))
