"""LangChain: a callback handler that tracks each run of a chat model or LLM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from langchain_core.callbacks import BaseCallbackHandler

from ..client.context import current_context
from ..responses.counts import first, member
from ..responses.identity import call_key
from ..responses.langchain import reported
from ..responses.providers import text_of_name
from .listener import Listener, ids_told, never_raising

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

    from ..instrumentation.call import Call
    from ..tracker import UsageTracker

Json = Mapping[str, object]

_MOST_OPEN: Final = 10_000  # runs that never end must not fill the memory
_NOTHING: Final[Json] = {}


class _Run(NamedTuple):
    """A run that has begun: when, the ids where it did, and its metadata."""

    began_at: datetime
    context: Json
    metadata: Json


class TokenTrackingCallbackHandler(BaseCallbackHandler):
    """Tracks every run of a model: `config={"callbacks": [TokenTrackingCallbackHandler()]}`.

    The same handler serves `invoke`, `stream`, `batch` and their asynchronous versions, of chat
    models and LLMs. A run's ids are those of its `metadata` (tenant_id, agent_id, conversation_id
    or thread_id, collection_id, operation), or else those of the `usage_context` in which it began,
    or else those given here. It never raises and waits for nothing. What comes from LangChain's
    cache and runs that failed are not usage. A stream that was cut or closed early is recorded with
    what is known and `metadata.usage` "partial", a response without usage with "missing".

    Args:
        tenant_id: for runs that have none, like the other ids.
        agent_id: as above.
        conversation_id: as above.
        collection_id: as above.
        operation: as above; default "query".
        tracker: instead of the default one.

    """

    run_inline = True  # it does not block, and a thread for each hook would cost more

    def __init__(
        self,
        *,
        tenant_id: str | UUID | None = None,
        agent_id: str | UUID | None = None,
        conversation_id: str | UUID | None = None,
        collection_id: str | UUID | None = None,
        operation: str | None = None,
        tracker: UsageTracker | None = None,
    ) -> None:
        super().__init__()
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
        self._open: OrderedDict[UUID, _Run] = OrderedDict()

    def on_chat_model_start(
        self,
        serialized: dict[str, object],  # noqa: ARG002
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        metadata: Json | None = None,
        **_: object,
    ) -> None:
        """Note the ids of a chat model's run that begins."""
        self._begun(run_id, metadata)

    def on_llm_start(
        self,
        serialized: dict[str, object],  # noqa: ARG002
        prompts: list[str],  # noqa: ARG002
        *,
        run_id: UUID,
        metadata: Json | None = None,
        **_: object,
    ) -> None:
        """Note the ids of an LLM's run that begins."""
        self._begun(run_id, metadata)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: object) -> None:
        """Track each response of a run."""
        self._ended(response, run_id)

    def on_llm_error(
        self,
        error: BaseException,  # noqa: ARG002
        *,
        run_id: UUID,
        response: object = None,
        **_: object,
    ) -> None:
        """Track a stream that was cut or closed; other failures are not usage."""
        self._failed(response, run_id)

    @never_raising
    def _begun(self, run_id: UUID, metadata: Json | None) -> None:
        self._open[run_id] = _Run(datetime.now(UTC), current_context(), metadata or _NOTHING)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)

    @never_raising
    def _ended(self, response: LLMResult, run_id: UUID) -> None:
        run = self._run(run_id)
        has_told = False
        for number, message in enumerate(_messages(response)):
            usage = member(message, "usage_metadata")
            if member(usage, "total_cost") is not None:
                return  # the mark of LangChain's cache
            if usage is not None:
                has_told = True
                call = self._call(run, run_id, number, message)
                if call is not None:
                    call.answered(message)
        if has_told:
            return
        output = cast("object", response.llm_output)
        usage = first(member(output, "token_usage"), member(output, "usage"))
        if usage == {}:
            return  # another prompt of the same request has the usage of all
        call = self._call(
            run, run_id, 0, None, first(member(output, "model_name"), member(output, "model"))
        )
        if call is None:
            return
        if usage is None:
            call.answered_without_usage(None)
        else:
            call.answered({"model": call.source.model, "choices": (), "usage": usage})

    @never_raising
    def _failed(self, response: object, run_id: UUID) -> None:
        run = self._run(run_id)
        for candidates in cast("list[list[object]]", member(response, "generations") or []):
            for generation in candidates:
                # A failed request has a generation too, made of the error.
                if type(generation).__name__.endswith("Chunk"):
                    message = member(generation, "message")
                    call = self._call(run, run_id, 0, message)
                    if call is not None:
                        call.cut(message)
                    return

    def _run(self, run_id: UUID) -> _Run:
        found = self._open.pop(run_id, None)
        return found or _Run(datetime.now(UTC), current_context(), _NOTHING)

    def _call(
        self, run: _Run, run_id: UUID, number: int, message: object, model: object = None
    ) -> Call | None:
        about = member(message, "response_metadata")
        provider = text_of_name(
            first(
                member(about, "model_provider"),
                member(about, "provider"),
                run.metadata.get("ls_provider"),
            )
        )
        response_id = _response_id(message)
        return self._listener.call(
            provider,
            first(model, run.metadata.get("ls_model_name")),
            response_id or f"{run_id}:{number}",
            run.context,
            ids_told(run.metadata),
            occurred_at=run.began_at,
            idempotency_key=call_key(provider, response_id, "langchain", run_id, number),
        )


def _messages(response: LLMResult) -> Iterator[object]:
    """Yield one message of each response: each of several candidates repeats the usage of all."""
    for candidates in response.generations:
        seen: list[object] = []
        for generation in candidates:
            message = member(generation, "message")
            usage = member(message, "usage_metadata")
            told = (_own_id(message), usage)
            if told not in seen:
                seen.append(told)
                yield message


def _own_id(message: object) -> object:
    return member(member(message, "response_metadata"), "id")


def _response_id(message: object) -> str | None:
    found = reported(message, member(message, "usage_metadata")).response_id
    return found if isinstance(found, str) else None
