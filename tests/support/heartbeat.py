"""Measures how late an event loop is, in a process that loads no more than a service does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path


class Heartbeat:
    """A task that only sleeps: measures how late it wakes up, and how much the process caused.

    Linux tells how long a thread was ready to run and had no processor: that is the machine's
    doing, of each of our threads, for any may have held the interpreter meanwhile. The rest is
    ours, be it work on the loop's thread or its wait for the interpreter.
    """

    def __init__(self) -> None:
        self.late: list[float] = []
        self.ours: list[float] = []

    async def beat(self) -> None:
        while True:
            before = without_processor()
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late = time.perf_counter() - due
            self.late.append(late)
            lost = sum(now - before.get(thread, now) for thread, now in without_processor().items())
            self.ours.append(late - lost / 1e9)

    def summary(self) -> dict[str, float]:
        late, ours = sorted(self.late) or [0.0], sorted(self.ours) or [0.0]
        beats = len(self.late)
        self.late, self.ours = [], []
        return {
            "beats": beats,
            "late": late[-1],
            "late_p99": late[int(len(late) * 0.99)],
            "ours": ours[-1],
        }


def without_processor() -> dict[str, int]:
    """Return for how many nanoseconds each thread has been ready to run and had no processor."""
    waited: dict[str, int] = {}
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            waited[thread.name] = int((thread / "schedstat").read_text().split()[1])
    return waited
