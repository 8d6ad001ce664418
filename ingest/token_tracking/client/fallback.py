"""Calls an existing implementation, on its own thread, when nothing else can take an event."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from ..errors import SettingsError
from .complaints import complaints, where
from .logs import SafeLogger
from .requests import Answer, Outcome, Request
from .settings import NamedFunction
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    FallbackFunction = Callable[..., object] | Callable[..., Awaitable[object]]

logger = SafeLogger(__name__)

_MOST_WAITING: Final = 1000
_LATE: Final = Answer(Outcome.FALLBACK, "the fallback did not answer in time")
_NOT_CALLED: Final = Answer(Outcome.REFUSED, "the fallback could not be called in time")


class Fallback:
    """Calls the function at most once for each event; its truth value is the answer."""

    def __init__(
        self,
        function: FallbackFunction | NamedFunction,
        count: Callable[[Outcome], None],
        deliver: Callable[[Sequence[tuple[Request, Answer]]], None],
    ) -> None:
        self._function = function
        self._count = count
        self._deliver = deliver
        self._queue: deque[Request] = deque()
        self._taking = threading.Lock()
        self._called: Request | None = None
        self._runner: asyncio.Runner | None = None
        self._closing = False
        # A function given by name is imported on this thread and before it is needed, so that no
        # call waits for the import.
        self._is_looked_for = not isinstance(function, NamedFunction)
        self._worker = Worker("token-tracking-fallback", self._step)

    def look_for_function(self) -> None:
        """Import the function now, so that a missing one is reported before an outage."""
        if not self._is_looked_for:
            self._worker.start()

    def call(self, request: Request) -> bool:
        """Queue the request's arguments for the function; return False if it cannot keep up."""
        if (
            request.original is None
            or self._closing
            or len(self._queue) >= _MOST_WAITING
            or not self._worker.start()
        ):
            return False
        self._queue.append(request)
        self._worker.ring()
        return True

    def waiting(self) -> int:
        """Return how many requests wait for the function."""
        return len(self._queue)

    def answer_late(self, due: float) -> float:
        """Answer all calls that have waited since `due`; return when the next one began to wait."""
        told: list[tuple[Request, Answer]] = []
        with self._taking:
            if self._called is not None and self._called.since <= due:
                told.append((self._called, _LATE))
                self._called = None
            while self._queue and self._queue[0].since <= due:
                told.append((self._queue.popleft(), _NOT_CALLED))
            waits = [*self._queue][:1] + ([self._called] if self._called else [])
        for _, answer in told:
            if answer is _NOT_CALLED:
                self._count(answer.outcome)
        self._deliver(told)
        return min((request.since for request in waits), default=float("inf"))

    def close(self, timeout: float) -> bool:
        """Finish the queued calls; return False if that takes more than `timeout` seconds."""
        self._closing = True
        self._worker.ring()
        return self._worker.join(timeout)

    def _step(self) -> bool:
        if not self._is_looked_for:
            self._is_looked_for = True
            self._found()
        with self._taking:
            request = self._called = self._queue.popleft() if self._queue else None
        if request is None:
            if self._closing:
                self._end_runner()
                return False
            self._worker.wait()
            return True
        logger.debug("gave a %s to the fallback", request.kind)
        answer = self._answer(request)
        with self._taking:
            late, self._called = self._called is None, None
        if not late:
            self._deliver([(request, answer)])
        return True

    def _found(self) -> FallbackFunction | None:
        if isinstance(self._function, NamedFunction):
            try:
                self._function = self._function.found()
            except SettingsError as error:
                complaints.log(logger, logging.ERROR, "%s", error)
                return None
        return self._function

    def _answer(self, request: Request) -> Answer:
        function = self._found()
        if function is None:
            self._count(Outcome.REFUSED)
            return Answer(Outcome.REFUSED, "the fallback is not there, see the log")
        try:
            if self._runner is None:
                self._runner = asyncio.Runner()
            self._runner.get_loop()  # before the call, which needs a loop
        except Exception as error:  # noqa: BLE001  # such as no file descriptors left
            logger.error("the fallback cannot be called: %s", type(error).__name__)
            self._runner = None
            self._count(Outcome.REFUSED)
            return Answer(Outcome.REFUSED, "the fallback cannot be called")
        self._count(Outcome.FALLBACK)
        try:
            result = function(**(request.original or {}))
            if inspect.isawaitable(result):
                result = self._runner.run(_awaited(result))
            return Answer(Outcome.FALLBACK, None if result else "the fallback answered False")
        except BaseException as error:  # noqa: BLE001  # it was called, and must not be called again
            if not isinstance(error, Exception):
                self._end_runner()  # whatever state its loop is in
            complaints.log(
                logger, logging.ERROR, "%s in the fallback:\n%s", type(error).__name__, where(error)
            )
            return Answer(Outcome.FALLBACK, f"the fallback raised {type(error).__name__}")

    def _end_runner(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            with contextlib.suppress(BaseException):
                runner.close()


async def _awaited(result: Awaitable[object]) -> object:
    return await result
