"""Durations as people write them: 500ms, 5s, 1m, 1h."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WRITTEN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")


def seconds_of(text: str, *, least: float, most: float) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is not a duration, or not between `least` and `most` seconds.

    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        message = (
            f"{text!r} is not a duration: write a number and its unit, such as 500ms, 5s or 1m"
        )
        raise ValueError(message)
    seconds = float(match[1]) * _UNITS[match[2]]
    if not least <= seconds <= most:
        message = f"{text} is not between {_written(least)} and {_written(most)}"
        raise ValueError(message)
    return seconds


def _written(seconds: float) -> str:
    unit = next(unit for unit in ("h", "m", "s", "ms") if seconds >= _UNITS[unit])
    return f"{seconds / _UNITS[unit]:g}{unit}"
