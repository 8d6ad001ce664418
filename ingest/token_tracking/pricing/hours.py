"""Times of prices: on whole hours of UTC, for totals are by the hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from ..errors import InvalidPriceError
from .rules import is_whole_hour

HOUR: Final = timedelta(hours=1)


def time_of(text: str) -> datetime:
    """Return a day or time in ISO 8601 as a time in UTC; without UTC offset it is UTC.

    Raises:
        InvalidPriceError: the text is neither.

    """
    try:
        instant = datetime.fromisoformat(text.strip())
        is_naive = instant.utcoffset() is None
        return instant.replace(tzinfo=UTC) if is_naive else instant.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        reason = f"{text!r} is not a time; write it as 2026-12-01, or 2026-12-01T15:00 (UTC)"
        raise InvalidPriceError(reason) from error


def hour_of(text: str) -> datetime:
    """Return a day or time in ISO 8601 as the first instant of a price.

    Raises:
        InvalidPriceError: the text is neither, or a time within an hour of UTC.

    """
    instant = time_of(text)
    if not is_whole_hour(instant):
        before = instant.replace(minute=0, second=0, microsecond=0)
        reason = (
            f"{text!r} is within an hour: prices begin on whole hours of UTC, as totals are by the "
            f"hour; take {shown(before)} or {shown(before + HOUR)}"
        )
        raise InvalidPriceError(reason)
    return instant


def next_hour(now: datetime) -> datetime:
    """Return the next whole hour of UTC, or the time itself if it is one."""
    began = begun_hour(now)
    return began if began == now else began + HOUR


def begun_hour(now: datetime) -> datetime:
    """Return the whole hour of UTC that a time is in."""
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def shown(instant: datetime) -> str:
    """Return a time as people read it, in UTC; a midnight as the day alone."""
    instant = instant.astimezone(UTC)
    return f"{instant:%Y-%m-%d}" if instant.hour == 0 else f"{instant:%Y-%m-%dT%H:%MZ}"
