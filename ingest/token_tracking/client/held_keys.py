"""The keys whose requests wait for locks of other transactions."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0


@dataclass(slots=True)
class _Wait:
    due: float
    pause: float
    pass_: int


class HeldKeys:
    """The keys whose requests are set aside; shared by the threads that send.

    A key is held while a request with it waits in the spool: later requests queue behind that one,
    so that the requests of one key keep their order. One thread retries all of them, in passes.
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._waits: dict[str, _Wait] = {}
        self._blocked: set[str] = set()
        self._pass = 0

    def __bool__(self) -> bool:
        return bool(self._waits)

    def __contains__(self, key: str) -> bool:
        return key in self._waits

    def is_due(self, key: str) -> bool:
        """Return whether to try this held key now, in this pass."""
        with self._changing:
            wait = self._waits.get(key)
            return wait is None or (key not in self._blocked and wait.due <= time.monotonic())

    def put_off(self, key: str) -> None:
        """Note that a request with this key was tried and had to wait."""
        with self._changing:
            known = self._waits.get(key)
            pause = _FIRST_PAUSE if known is None else min(_LONGEST_PAUSE, 2 * known.pause)
            self._waits[key] = _Wait(time.monotonic() + pause, pause, self._pass)
            self._blocked.add(key)

    def keep(self, keys: Iterable[str]) -> None:
        """Note that requests with these keys are queued behind others, or are in the spool."""
        with self._changing:
            for key in keys:
                wait = self._waits.setdefault(key, _Wait(0.0, _FIRST_PAUSE, self._pass))
                wait.pass_ = self._pass
                self._blocked.add(key)

    def got_through(self) -> None:
        """Note that a held request got through: the others are due at once."""
        with self._changing:
            for wait in self._waits.values():
                wait.due = 0.0

    def seconds_until_due(self) -> float | None:
        """Return the seconds until the next retry; None if no key is held."""
        with self._changing:
            dues = [wait.due for wait in self._waits.values()]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def begin_pass(self) -> None:
        """Begin a pass through all waiting requests."""
        with self._changing:
            self._pass += 1
            self._blocked.clear()

    def end_pass(self) -> None:
        """End the pass: forget the keys of which no request was set aside since its beginning."""
        with self._changing:
            self._waits = {
                key: wait for key, wait in self._waits.items() if wait.pass_ == self._pass
            }
