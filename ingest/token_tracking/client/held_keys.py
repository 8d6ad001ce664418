"""What waits for locks of other transactions, known by the key that it waits for."""

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

    A key is here for as long as a request with it waits in the spool: who comes later goes behind
    it, so that requests of one key keep their order. One thread goes through what waits, in passes.
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
        """Say whether the key, one of these, is to be tried now, in this pass."""
        with self._changing:
            wait = self._waits.get(key)
            return wait is None or (key not in self._blocked and wait.due <= time.monotonic())

    def put_off(self, key: str) -> None:
        """Take note that a request with this key was tried, and waited."""
        with self._changing:
            known = self._waits.get(key)
            pause = _FIRST_PAUSE if known is None else min(_LONGEST_PAUSE, 2 * known.pause)
            self._waits[key] = _Wait(time.monotonic() + pause, pause, self._pass)
            self._blocked.add(key)

    def keep(self, keys: Iterable[str]) -> None:
        """Take note that requests with these keys are behind others, or in the spool by now."""
        with self._changing:
            for key in keys:
                wait = self._waits.setdefault(key, _Wait(0.0, _FIRST_PAUSE, self._pass))
                wait.pass_ = self._pass
                self._blocked.add(key)

    def got_through(self) -> None:
        """Take note that something waited no longer: what was held with it is tried at once."""
        with self._changing:
            for wait in self._waits.values():
                wait.due = 0.0

    def seconds_until_due(self) -> float | None:
        """Return when the next one is to be tried; None where nothing waits."""
        with self._changing:
            dues = [wait.due for wait in self._waits.values()]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def begin_pass(self) -> None:
        """Begin to go through all that waits."""
        with self._changing:
            self._pass += 1
            self._blocked.clear()

    def end_pass(self) -> None:
        """Forget the keys of which the pass that ends, or anybody meanwhile, has set none aside."""
        with self._changing:
            self._waits = {
                key: wait for key, wait in self._waits.items() if wait.pass_ == self._pass
            }
