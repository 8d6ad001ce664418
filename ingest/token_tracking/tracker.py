"""The tracker: records usage from one process; `default` has the one that services share."""

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
from .client.requests import FORKED, Answer, BlockingFuture, Outcome, RejectionRequest
from .client.runtimes import can_start_threads, is_in_task, new_future, next_turn
from .client.settings import TrackerSettings, load_settings
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
_TURN_SECONDS: Final = 0.001  # of a loop, at once
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


async def _settled(entry: Answer | Future) -> Answer:
    if isinstance(entry, Answer):
        return entry
    return entry.result() if isinstance(entry, BlockingFuture) else await entry


async def _all_settled(entries: Sequence[Answer | Future]) -> list[Answer]:
    # Those of one batch are answered together: after the first, hardly one is waited for.
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
    """Make the twin for code without event loop: its futures block, so it is never suspended."""

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
    """How the calls so far ended, each in exactly one of the first eight, and what waits now.

    `flushed` tells, by outcome, what became later of what was spooled, in this process's time:
    also of what another process had left. Of what still is in this process's spool, `early` is
    ahead of the database's clock, and `locked` waits for a lock that another transaction holds, or
    behind what does: both as of the last attempt.
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


class UsageTracker:
    """Records usage from one process through one connection and one thread of its own.

    Use it as a context manager, async or plain, or call `start` and `aclose` (or `close`). Settings
    are arguments, `TOKEN_TRACKING_*` or defaults, in this order; see `TrackerSettings`. One tracker
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
            import_module(".target", __package__)  # with which settings check dsn
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
        # The same tracker, but who calls its methods blocks where a task would be suspended.
        self.blocking = object.__new__(UsageTracker)
        self.blocking.__dict__.update(self.__dict__)  # by hand, for `copy` imports even at the end
        self.blocking.new_future = BlockingFuture
        self.blocking.let_others_run = _no_turn
        # Whoever forgets to close it keeps neither its threads nor its connection.
        if can_start_threads():  # later there is nothing to drop
            weakref.finalize(self, self._writer.drop).atexit = False

    def start(self) -> Self:
        """Import the driver and connect now rather than at the first call.

        A database that cannot be reached is logged, not raised: the service starts without it.
        """
        if self.settings.enabled:
            self._writer.start()
        return self

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Write what waits and stop; later calls answer False, unlike after the process's end."""
        if not self._writer.close(timeout):
            logger.error("%d event(s) still wait after %.1f s", self._writer.waiting(), timeout)

    async def aclose(self, timeout: float = _CLOSE_SECONDS) -> None:  # noqa: ASYNC109
        """Do as `close`, without holding the event loop."""
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
        """Return how the calls so far ended and how many wait."""
        ended = self._writer.outcomes()
        aside = self._writer.set_aside()
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
    ) -> bool:
        """Record one LLM or embedding call of a tenant and say whether it is durable.

        True: committed in PostgreSQL, now or by an earlier equal call with this key, or on local
        disk, from where it goes to PostgreSQL when that can take it. False: refused (the reason is
        logged, the payload kept as a rejection or conflict), or not known to be durable. Never
        raises because of tracking, unless the tracker has `on_error="raise"`.

        Args:
            tenant_id: the requester; ids are text of 1 to 255 characters or `UUID`.
            tokens: tokens to count, an integral number of any type. 0 or None means the sum of its
                parts; without parts there is nothing to count, and the answer is True. Given, at
                least the sum of its parts.
            model: name of the model.
            agent_id: the agent that made the call; its owner at that time pays.
            conversation_id: kept with the event.
            collection_id: kept with the event.
            token_type: a `TokenType` or its text; another text counts as unknown.
            operation: an `Operation` or its text; another text counts as unknown.
            metadata: a JSON object of at most 16 KiB, 8 deep. It never costs the event: what JSON
                has not becomes text, and of what is larger the beginnings are kept.
            idempotency_key: the caller's name for this call, the same at every retry of it and for
                no other call; without one, each call is an event of its own.
            input_tokens: prompt tokens, a part of `tokens`.
            output_tokens: completion tokens, a part of `tokens`.
            occurred_at: when it happened (aware); default now.

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
        entry = self._submit(call_request, fields)
        # The usual one without a coroutine more.
        return self._told(
            await entry if isinstance(entry, asyncio.Future) else await _settled(entry)
        )

    async def track_many(self, events: Iterable[UsageEvent | Mapping[str, object]]) -> list[bool]:
        """Record many events and say of each, in order, whether it is durable.

        A dictionary has the fields of `UsageEvent`. Events are taken from the iterable as they can
        be sent, so memory stays bounded for any number of them. With `on_error="raise"` all are
        sent, too; then the error of the first that would be False is raised, and its `told` is the
        list.
        """
        answers: list[Answer] = []
        sent: list[Answer | Future] = []
        turn = time.perf_counter()
        # What is no iterable is one event that is none: refused and kept, not raised.
        for event in events if hasattr(type(events), "__iter__") else [events]:
            if time.perf_counter() - turn > _TURN_SECONDS:
                await self.let_others_run()
                turn = time.perf_counter()
            sent.append(self._submit(event_request, event))
            # Two batches under way: one is written while the next one is made.
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
        """Take an event out of all totals, whether it is there already or arrives later.

        The event itself stays recorded. A second void of the same event changes nothing.

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
        """Record who owns an agent, and so pays for its calls, from an instant (default: now) on.

        It holds until the agent's next such instant; None ends the ownership. Another owner for an
        instant that is known already corrects it. Of several, the last to reach the database
        counts: one that waited in the spool comes after those that were recorded meanwhile.

        Example:
            >>> await record_agent_owner("agent-7", "acme")  # doctest: +SKIP
            True

        """
        return await self._answer(owner_request, agent_id, owner_tenant_id, valid_from)

    track_token_usage_sync = _in_sync(track_token_usage)
    track_many_sync = _in_sync(track_many)
    void_usage_sync = _in_sync(void_usage)
    record_agent_owner_sync = _in_sync(record_agent_owner)

    async def _answer(self, build: Callable[[*Ts], Request | Answer], *given: *Ts) -> bool:
        return self._told(await _settled(self._submit(build, *given)))

    def _submit(self, build: Callable[[*Ts], Request | Answer], *given: *Ts) -> Answer | Future:
        """Queue what `build` makes; the answer at once, where there is nothing to wait for."""
        if not self.settings.enabled:
            return self._ended(NO_OP)
        try:
            request = build(*given)
            if isinstance(request, Answer):
                return self._ended(request)
            if request.original is not None:
                keep = self._writer.keeps_originals
                request.original = old_arguments(request.original) if keep else None
            request.future = self.new_future()
            refused = self._writer.submit(request)
            if refused is not None:
                return self._ended(refused)
            # Where nobody waits, it is counted by what becomes of it, like a cancelled call.
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
        """Return what the answer is to a tracker that raises; None where it is True."""
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
        """Return the folder of what waits on local disk for this tracker's database."""
        return spool_folder_of(self.settings).path


async def _apart(work: Callable[[], object]) -> None:
    """Do it on a thread of its own and wait for its end, which its own bounds bring."""
    future = new_future()

    def step() -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # who waits goes on
            logger.error("%s at start or end:\n%s", type(error).__name__, where(error))
        request = RejectionRequest(b"", "")
        request.future = future
        deliver_answers([(request, NO_OP)])
        return False

    if future is not None and Worker("token-tracking-apart", step, writes_lines=False).start():
        await _settled(future)
    else:
        work()
