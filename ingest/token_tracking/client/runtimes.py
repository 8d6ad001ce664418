"""Which library runs the calling task, and how such a task waits for an answer.

asyncio and trio are known, trio without being needed: a program that runs it has imported it.
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
    """An answer that a task of trio waits for; any thread gives it."""

    __slots__ = ("_answer", "_event", "_run_over", "_tell")

    def __init__(self, trio: ModuleType) -> None:
        self._answer: Answer | None = None
        self._event = trio.Event()
        self._tell = trio.lowlevel.current_trio_token().run_sync_soon
        self._run_over: type[Exception] = trio.RunFinishedError

    def done(self) -> bool:
        """Say whether the answer is there."""
        return self._answer is not None

    def set_result(self, answer: Answer) -> None:
        """Give the answer."""
        self._answer = answer
        with suppress(self._run_over):
            self._tell(self._event.set)

    def result(self) -> Answer:
        """Return the answer, which is there."""
        assert self._answer is not None  # noqa: S101  # asked for when it is done
        return self._answer

    def __await__(self) -> Generator[object, object, Answer]:
        yield from self._event.wait().__await__()
        return self.result()


def new_future() -> Future | None:
    """Return what the calling task waits for; None where nobody can be told how it would wait."""
    if (trio := _running_trio()) is not None:
        return TrioFuture(trio)
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:
        return None


async def next_turn() -> None:
    """Let the other tasks run."""
    if (trio := _running_trio()) is not None:
        await trio.lowlevel.checkpoint()
    elif is_in_task():
        await asyncio.sleep(0)


def is_in_task() -> bool:
    """Say whether this thread runs a loop, which must not be held."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return _running_trio() is not None


_told_so: Final[list[str]] = []


def is_ending() -> bool:
    """Say whether the interpreter shuts down, from its exit handlers on."""
    return sys.is_finalizing() or not threading.main_thread().is_alive() or bool(_told_so)


def can_start_threads() -> bool:
    """Say whether it is safe to try: past the exit handlers, starting one would wait for ever."""
    return not sys.is_finalizing()


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread | None:
    """Start a daemon thread; None where the interpreter shuts down or the system is full."""
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
    # Each of the two can run on top of the other one: the task decides, and not the loop.
    with suppress(RuntimeError):
        if asyncio.current_task() is not None:
            return None
    try:
        trio.lowlevel.current_task()
    except (AttributeError, RuntimeError):  # it is still being imported, or does not run here
        return None
    return trio
