"""Waiting for conditions, and counting finished calls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from token_tracking import TrackerStats

ENDINGS = (
    "recorded",
    "duplicate",
    "conflict",
    "rejected",
    "spooled",
    "fallback",
    "refused",
    "no_op",
)


def until(condition: Callable[[], bool], seconds: float = 30, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def ended(stats: TrackerStats | dict[str, object]) -> int:
    """Return how many calls have ended, with any outcome."""
    counts = stats if isinstance(stats, dict) else dataclasses.asdict(stats)
    return sum(int(str(counts[name])) for name in ENDINGS)
