"""The tracker that records one process's usage; `default` holds the one that services share."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Self, TypeVar, TypeVarTuple, cast

from .client.calls import (
    NO_OP,
    call_request,
    event_request,
    old_arguments,
    owner_request,
    void_request,
)
from .client.complaints import complaints, where
from .client.delivery import MAX_BATCH
from .client.destination import connect, spool_folder_of
from .client.logs import SafeLogger
from .client.requests import FORKED, Answer, BlockingFuture, Noted, Outcome, RejectionRequest
from .client.runtimes import can_start_threads, is_in_task, new_future, next_turn
from .client.settings import TrackerSettings, load_settings
from .client.tracked_response import response_request
from .client.worker import Worker
from .client.writer import LATE, Writer, deliver_answers
from .errors import InvalidUsageError, NotDurableError, TokenTrackingError, UsageConflictError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from .client.fallback import FallbackFunction
    from .client.requests import Future, Request
    from .event.usage_event import UsageEvent

logger = SafeLogger(__name__)

_CLOSE_SECONDS: Final = 10.0
_TURN_SECONDS: Final = 0.001  # that `track_many` holds an event loop before it yields
_FAULT: Final = Answer(Outcome.REFUSED, "a fault in token_tracking, see the log")
_UNAWAITED: Final = Answer(
    Outcome.REFUSED,
    "neither asyncio nor trio runs this call, so its answer cannot be awaited, it is still sent: "
    "call the function of this name with _sync",
)
_TRUE: Final = frozenset({Outcome.RECORDED, Outcome.DUPLICATE, Outcome.SPOOLED, Outcome.NO_OP})

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
R = TypeVar("R")


async def _no_turn() -> None:
    pass


def _no_future() -> None:
    pass


async def _settled(entry: Answer | Future) -> Answer:
    if isinstance(entry, Answer):
        return entry
    return entry.result() if isinstance(entry, BlockingFuture) else await entry


async def _all_settled(entries: Sequence[Answer | Future]) -> list[Answer]:
    # A batch is answered at once: after its first entry, most others are done already.
    return [
        entry
        if isinstance(entry, Answer)
        else entry.result()
        if entry.done()
        else await _settled(entry)
        for entry in entries
    ]


def _in_sync(
    method: Callable[Concatenate[UsageTracker, P], Coroutine[object, object, R]],
) -> Callable[Concatenate[UsageTracker, P], R]:
    """Make the synchronous version of a method: its futures block, so it is never suspended."""

    @wraps(method)
    def twin(self: UsageTracker, *args: P.args, **kwargs: P.kwargs) -> R:
        coroutine = method(self.blocking, *args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as done:
            return cast("R", done.value)
        message = f"{method.__name__} was suspended outside of an event loop"
        raise RuntimeError(message)

    twin.__name__ = twin.__qualname__ = f"{method.__name__}_sync"
    return twin


@dataclass(frozen=True, slots=True)
class TrackerStats:
    """Counts of finished calls by outcome, and of requests that are still waiting.

    Each finished call counts in exactly one of the first eight fields. `flushed` counts, by
    outcome, the requests that this process sent after their call had returned: its own spooled
    requests and those that another process left behind. `early` and `locked` count requests in this
    process's spool, as of the last attempt to send them: `early` ones are ahead of the database's
    clock or have fields that its older schema lacks, `locked` ones wait for a lock that another
    transaction holds, or behind a request that does.

    The last three count calls of instrumented clients beside their outcome: streams that ended
    early, responses that told no usage, and calls that had no tenant.
    """

    recorded: int
    duplicate: int
    conflict: int
    rejected: int
    spooled: int
    fallback: int
    refused: int
    no_op: int
    waiting: int
    flushed: Mapping[str, int]
    early: int = 0
    locked: int = 0
    cut_streams: int = 0
    without_usage: int = 0
    without_tenant: int = 0


class UsageTracker:
    """Records the usage of one process through one connection and a background thread.

    Use it as a context manager, async or plain, or call `start` and `aclose` (or `close`). Settings
    come from arguments, then `TOKEN_TRACKING_*`, then defaults; see `TrackerSettings`. One tracker
    serves any number of event loops and threads.

    Raises:
        SettingsError: a setting breaks a rule.

    Example:
        >>> async with UsageTracker(dsn="postgresql:///usage") as tracker:  # doctest: +SKIP
        ...     await tracker.track_token_usage("acme", 42, "gpt-4o")
        True

    """

    def __init__(
        self,
        *,
        dsn: str | None = None,
        enabled: bool | None = None,
        max_wait: float | None = None,
        spool_dir: str | Path | None = None,
        spool_max_bytes: int | None = None,
        on_error: str | None = None,
        fallback: FallbackFunction | str | None = None,
        settings: TrackerSettings | None = None,
    ) -> None:
        if settings is None and not is_in_task():
            import_module(".target", __package__)  # the settings use it to check dsn
        if settings is not None and fallback is not None:
            settings = replace(settings, fallback=fallback)  # pyright: ignore[reportArgumentType]
        self.settings: TrackerSettings = settings or load_settings(
            dsn=dsn,
            enabled=enabled,
            max_wait=max_wait,
            spool_dir=spool_dir,
            spool_max_bytes=spool_max_bytes,
            on_error=on_error,
            fallback=fallback,
        )
        self._writer = Writer(
            partial(connect, self.settings),
            max_wait=self.settings.max_wait,
            spool_folder=partial(spool_folder_of, self.settings),
            spool_max_bytes=self.settings.spool_max_bytes,
            fallback=self.settings.fallback,
        )
        self.new_future: Callable[[], Future | None] = new_future
        self.let_others_run: Callable[[], Awaitable[None]] = next_turn
        # The same tracker, whose methods block the calling thread instead of suspending a task.
        self.blocking = object.__new__(UsageTracker)
        self.blocking.__dict__.update(self.__dict__)  # `copy` would import, at exit too
        self.blocking.new_future = BlockingFuture
        self.blocking.let_others_run = _no_turn
        # A tracker that is never closed must not leak its threads and its connection.
        if can_start_threads():  # at exit there are no threads to stop
            weakref.finalize(self, self._writer.drop).atexit = False

    def start(self) -> Self:
        """Import the driver and connect now rather than at the first call.

        If the database cannot be reached, the error is logged and not raised, so that the service
        starts without it.
        """
        if self.settings.enabled:
            self._writer.start()
        return self

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Write all waiting requests and stop; later calls return False.

        A tracker that the exit of the process closes still records later calls.
        """
        if not self._writer.close(timeout):
            logger.error("%d event(s) still wait after %.1f s", self._writer.waiting(), timeout)

    async def aclose(self, timeout: float = _CLOSE_SECONDS) -> None:  # noqa: ASYNC109
        """Close the tracker like `close`, without blocking the event loop."""
        await _apart(partial(self.close, timeout))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await _apart(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def stats(self) -> TrackerStats:
        """Return the counts of finished calls and of waiting requests."""
        ended = self._writer.outcomes()
        aside = self._writer.set_aside()
        noted = self._writer.noted()
        return TrackerStats(
            recorded=ended[Outcome.RECORDED],
            duplicate=ended[Outcome.DUPLICATE],
            conflict=ended[Outcome.CONFLICT],
            rejected=ended[Outcome.REJECTED],
            spooled=ended[Outcome.SPOOLED],
            fallback=ended[Outcome.FALLBACK],
            refused=ended[Outcome.REFUSED],
            no_op=ended[Outcome.NO_OP],
            waiting=self._writer.waiting(),
            flushed={str(outcome): n for outcome, n in self._writer.flushed().items() if n},
            early=aside.early,
            locked=aside.locked,
            cut_streams=noted[Noted.CUT_STREAM],
            without_usage=noted[Noted.WITHOUT_USAGE],
            without_tenant=noted[Noted.WITHOUT_TENANT],
        )

    async def track_token_usage(
        self,
        tenant_id: str | UUID | None = None,
        tokens: int | None = 0,
        model: str | None = None,
        agent_id: str | UUID | None = None,
        conversation_id: str | UUID | None = None,
        collection_id: str | UUID | None = None,
        token_type: str | None = "llm",
        operation: str | None = "query",
        metadata: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        occurred_at: datetime | None = None,
        provider: str | None = None,
        service_tier: str | None = None,
        cache_read_tokens: int | None = None,
        cache_write_tokens: int | None = None,
        cache_write_long_tokens: int | None = None,
        reasoning_tokens: int | None = None,
    ) -> bool:
        """Record one LLM or embedding call of a tenant; return whether it is durable.

        True: the event is committed in PostgreSQL, now or by an earlier equal call with this key,
        or it is on local disk and will be sent when PostgreSQL is available. False: the event was
        refused (the reason is logged, the payload kept as a rejection or conflict), or it is not
        known to be durable. Tracking errors are never raised unless the tracker has
        `on_error="raise"`.

        Args:
            tenant_id: the requester; ids are text of 1 to 255 characters or `UUID`.
            tokens: tokens to count, an integral number of any type, at least the sum of
                `input_tokens` and `output_tokens`. 0 or None means that sum; if neither is given,
                there is nothing to count and the result is True.
            model: name of the model.
            agent_id: the agent that made the call; its owner at that time pays.
            conversation_id: kept with the event.
            collection_id: kept with the event.
            token_type: a `TokenType` or its text; any other text counts as unknown.
            operation: an `Operation` or its text; any other text counts as unknown.
            metadata: a JSON object of at most 16 KiB, nested at most 8 deep. Bad metadata never
                causes the event to be refused: values that JSON cannot represent become text, and
                larger values are truncated.
            idempotency_key: the caller's name for this call, the same for every retry of it and for
                no other call; without one, each call is an event of its own.
            input_tokens: all prompt tokens, cached ones included; a part of `tokens`.
            output_tokens: all completion tokens, reasoning included; a part of `tokens`.
            occurred_at: when the call happened (aware); default now.
            provider: who served the call, such as openai, anthropic or aws.bedrock: the values of
                OpenTelemetry's `gen_ai.provider.name`.
            service_tier: how it was served if not as standard, such as batch, flex or priority.
            cache_read_tokens: prompt tokens read from a cache, a part of `input_tokens`.
            cache_write_tokens: prompt tokens written to a cache, a part of `input_tokens`.
            cache_write_long_tokens: those that the provider keeps longer, such as for an hour; a
                part of `cache_write_tokens`.
            reasoning_tokens: tokens of hidden reasoning, a part of `output_tokens`.

        Example:
            >>> await track_token_usage("acme", 42, "gpt-4o", operation="chat")  # doctest: +SKIP
            True

        """
        fields: dict[str, object] = {
            "tenant_id": tenant_id,
            "idempotency_key": idempotency_key,
            "tokens": tokens,
            "token_type": token_type,
            "operation": operation,
            "model": model,
            "agent_id": agent_id,
            "conversation_id": conversation_id,
            "collection_id": collection_id,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "metadata": metadata,
            "occurred_at": occurred_at,
        }
        if not (
            provider
            is service_tier
            is cache_read_tokens
            is cache_write_tokens
            is cache_write_long_tokens
            is reasoning_tokens
            is None
        ):
            fields |= {
                "provider": provider,
                "service_tier": service_tier,
                "cache_read_tokens": cache_read_tokens,
                "cache_write_tokens": cache_write_tokens,
                "cache_write_long_tokens": cache_write_long_tokens,
                "reasoning_tokens": reasoning_tokens,
            }
        entry = self._submit(call_request, fields)
        # Await the usual future directly: one coroutine less per call.
        return self._told(
            await entry if isinstance(entry, asyncio.Future) else await _settled(entry)
        )

    async def track_response(
        self,
        response: object,
        *,
        tenant_id: str | UUID | None = None,
        agent_id: str | UUID | None = None,
        conversation_id: str | UUID | None = None,
        collection_id: str | UUID | None = None,
        operation: str | None = None,
        metadata: Mapping[str, object] | None = None,
        occurred_at: datetime | None = None,
        idempotency_key: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        token_type: str | None = None,
    ) -> bool:
        """Record the usage that a provider's response tells; return whether it is durable.

        `response` is an object or a dictionary that `usage_of` reads: the kinds of tokens, model,
        provider and service tier come from it. Without `idempotency_key`, the key is
        `make_idempotency_key(provider, response_id)`: tracking the same response again counts
        once. A response without an id is an event of its own at each call. If the response
        contradicts itself, the metadata's `usage_note` says how.

        A response of an unknown form is refused and kept as a rejection, without its content.

        Args:
            response: what the provider's client library returned.
            tenant_id: this and the other ids as for `track_token_usage`.
            agent_id: the agent that made the call.
            conversation_id: kept with the event.
            collection_id: kept with the event.
            operation: that of the enclosing `usage_context`, else "query".
            metadata: a JSON object, kept with the event.
            occurred_at: when the call happened (aware); default now.
            idempotency_key: instead of the one that is made of provider and response id.
            provider: instead of the one that the response's form suggests, such as
                "azure.ai.openai" or "groq" for those that speak OpenAI's language.
            model: for responses that do not name one, such as those of Bedrock.
            token_type: "llm" or "embedding", if not as the response's form suggests.

        Example:
            >>> answer = await client.chat.completions.create(...)  # doctest: +SKIP
            >>> await track_response(answer, tenant_id="acme", operation="chat")  # doctest: +SKIP
            True

        """
        given: dict[str, object] = {
            "tenant_id": tenant_id,
            "agent_id": agent_id,
            "conversation_id": conversation_id,
            "collection_id": collection_id,
            "operation": operation,
            "metadata": metadata,
            "occurred_at": occurred_at,
            "idempotency_key": idempotency_key,
            "token_type": token_type,
        }
        return await self._answer(response_request, response, given, provider, model)

    async def track_many(self, events: Iterable[UsageEvent | Mapping[str, object]]) -> list[bool]:
        """Record many events; return for each, in order, whether it is durable.

        A dictionary has the fields of `UsageEvent`. The iterable is consumed only as fast as events
        can be sent, so memory use is bounded for any number of them. With `on_error="raise"`, all
        events are still sent; then the error of the first failed one is raised, with the list of
        results as its `told`.
        """
        answers: list[Answer] = []
        sent: list[Answer | Future] = []
        turn = time.perf_counter()
        # A non-iterable argument counts as one invalid event: reject and keep it, do not raise.
        for event in events if hasattr(type(events), "__iter__") else [events]:
            if time.perf_counter() - turn > _TURN_SECONDS:
                await self.let_others_run()
                turn = time.perf_counter()
            sent.append(self._submit(event_request, event))
            # Two batches in flight: one is written while the next one is built.
            if len(sent) == 2 * MAX_BATCH:
                answers += await _all_settled(sent[:MAX_BATCH])
                del sent[:MAX_BATCH]
        answers += await _all_settled(sent)
        errors = [self._error(answer) for answer in answers]
        told = [error is None for error in errors]
        if self.settings.on_error == "raise" and (first := next(filter(None, errors), None)):
            first.told = told
            raise first
        return told

    async def void_usage(self, tenant_id: str | UUID, idempotency_key: str, reason: str) -> bool:
        """Exclude an event from all totals, whether it is recorded already or arrives later.

        The event itself stays recorded. Voiding the same event again has no effect.

        Example:
            >>> await void_usage("acme", "op-17", "test traffic")  # doctest: +SKIP
            True

        """
        return await self._answer(void_request, tenant_id, idempotency_key, reason)

    async def record_agent_owner(
        self,
        agent_id: str | UUID,
        owner_tenant_id: str | UUID | None,
        valid_from: datetime | None = None,
    ) -> bool:
        """Record which tenant owns an agent, and pays for its calls, from `valid_from` on.

        `valid_from` defaults to now. The ownership lasts until the agent's next `valid_from`; an
        owner of None ends it. A second owner for the same `valid_from` corrects the first. Of
        several corrections, the last to reach the database counts: one that waited in the spool
        comes after those that were recorded in the meantime.

        Example:
            >>> await record_agent_owner("agent-7", "acme")  # doctest: +SKIP
            True

        """
        return await self._answer(owner_request, agent_id, owner_tenant_id, valid_from)

    track_token_usage_sync = _in_sync(track_token_usage)
    track_response_sync = _in_sync(track_response)
    track_many_sync = _in_sync(track_many)
    void_usage_sync = _in_sync(void_usage)
    record_agent_owner_sync = _in_sync(record_agent_owner)

    async def _answer(self, build: Callable[[*Ts], Request | Answer], *given: *Ts) -> bool:
        return self._told(await _settled(self._submit(build, *given)))

    def submit(self, build: Callable[[*Ts], Request | Answer], *given: *Ts) -> None:
        """Queue the request that `build` makes, for a caller that does not wait for its answer.

        `stats` counts how it ends. Never raises.
        """
        self._queued(_no_future, build, *given)

    def note(self, what: Noted) -> None:
        """Count something about a call beside its outcome."""
        self._writer.note(what)

    def _submit(self, build: Callable[[*Ts], Request | Answer], *given: *Ts) -> Answer | Future:
        return self._queued(self.new_future, build, *given)

    def _queued(
        self,
        new_future: Callable[[], Future | None],
        build: Callable[[*Ts], Request | Answer],
        *given: *Ts,
    ) -> Answer | Future:
        """Queue the request that `build` makes; return its answer, or a future of it."""
        if not self.settings.enabled:
            return self._ended(NO_OP)
        try:
            request = build(*given)
            if isinstance(request, Answer):
                return self._ended(request)
            if request.original is not None:
                keep = self._writer.keeps_originals
                request.original = old_arguments(request.original) if keep else None
            request.future = new_future()
            refused = self._writer.submit(request)
            if refused is not None:
                return self._ended(refused)
            # A call that nobody can await is counted by its later outcome, like a cancelled one.
            return _UNAWAITED if request.future is None else request.future
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            complaints.log(
                logger,
                logging.ERROR,
                "a usage event could not be taken, %s:\n%s",
                type(error).__name__,
                where(error),
            )
            return self._ended(_FAULT)

    def _ended(self, answer: Answer) -> Answer:
        self._writer.count(answer.outcome)
        if answer.outcome is Outcome.REFUSED:
            complaints.log(logger, logging.ERROR, "usage event refused: %s", answer.reason)
        return answer

    def _told(self, answer: Answer) -> bool:
        if answer.reason is None:
            return True
        error = self._error(answer)
        if error is not None and self.settings.on_error == "raise":
            raise error
        return error is None

    @staticmethod
    def _error(answer: Answer) -> TokenTrackingError | None:
        """Return the error to raise for an answer; None if the answer counts as True."""
        if answer.outcome in _TRUE or (
            answer.outcome is Outcome.FALLBACK and answer.reason is None
        ):
            return None
        if answer is LATE or answer is _UNAWAITED or answer is FORKED:
            complaints.log(logger, logging.ERROR, "usage event refused: %s", answer.reason)
        reason = answer.reason or ""
        if answer.outcome is Outcome.CONFLICT:
            return UsageConflictError(reason)
        if answer.outcome is Outcome.REJECTED:
            return InvalidUsageError(reason)
        return NotDurableError(reason)

    def spool_folder(self) -> Path:
        """Return the folder that holds the spooled requests for this tracker's database."""
        return spool_folder_of(self.settings).path


async def _apart(work: Callable[[], object]) -> None:
    """Run `work` on its own thread and await its end; `work` bounds its own duration."""
    future = new_future()

    def step() -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # the waiting task must go on
            logger.error("%s at start or end:\n%s", type(error).__name__, where(error))
        request = RejectionRequest(b"", "")
        request.future = future
        deliver_answers([(request, NO_OP)])
        return False

    if future is not None and Worker("token-tracking-apart", step, writes_lines=False).start():
        await _settled(future)
    else:
        work()
