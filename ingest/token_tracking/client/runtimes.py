"""Finds out which library runs the calling task, and how that task waits for an answer.

asyncio and trio are supported. trio is no dependency: a program that runs it has imported it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from .requests import Answer, Future


class TrioFuture:
    """A future for a trio task; any thread may set it."""

    __slots__ = ("_answer", "_event", "_run_over", "_tell")

    def __init__(self, trio: ModuleType) -> None:
        self._answer: Answer | None = None
        self._event = trio.Event()
        self._tell = trio.lowlevel.current_trio_token().run_sync_soon
        self._run_over: type[Exception] = trio.RunFinishedError

    def done(self) -> bool:
        """Return whether the answer is set."""
        return self._answer is not None

    def set_result(self, answer: Answer) -> None:
        """Set the answer."""
        self._answer = answer
        with suppress(self._run_over):
            self._tell(self._event.set)

    def result(self) -> Answer:
        """Return the answer, which must be set."""
        assert self._answer is not None  # noqa: S101  # called only when done
        return self._answer

    def __await__(self) -> Generator[object, object, Answer]:
        yield from self._event.wait().__await__()
        return self.result()


def new_future() -> Future | None:
    """Return a future for the calling task; None if neither asyncio nor trio runs it."""
    if (trio := _running_trio()) is not None:
        return TrioFuture(trio)
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:
        return None


async def next_turn() -> None:
    """Yield to the other tasks of the loop."""
    if (trio := _running_trio()) is not None:
        await trio.lowlevel.checkpoint()
    elif is_in_task():
        await asyncio.sleep(0)


def is_in_task() -> bool:
    """Return whether this thread runs an event loop, which must not be blocked."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return _running_trio() is not None


_told_so: Final[list[str]] = []


def is_ending() -> bool:
    """Return whether the interpreter shuts down; True from its exit handlers on."""
    return sys.is_finalizing() or not threading.main_thread().is_alive() or bool(_told_so)


def can_start_threads() -> bool:
    """Return whether a thread can be started: after the exit handlers it would block forever."""
    return not sys.is_finalizing()


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread | None:
    """Start a daemon thread; None if the interpreter shuts down or no thread can be started."""
    if not can_start_threads():
        return None
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        if "interpreter shutdown" in str(error):
            _told_so.append(str(error))
        return None
    return thread


def _running_trio() -> ModuleType | None:
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    # Each library can run on top of the other one, so look at the task and not at the loop.
    with suppress(RuntimeError):
        if asyncio.current_task() is not None:
            return None
    try:
        trio.lowlevel.current_task()
    except (AttributeError, RuntimeError):  # still being imported, or not running in this thread
        return None
    return trio
