"""Finds rows of a file that the database already holds, under the same or under other keys."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import psycopg

from .ordinals import Ordinals
from .plan import time_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from ..client.connection import Connection
    from .plan import Accepted

_NEXT_TRANSACTION: Final = """
    select pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""
_BETWEEN: Final = """
    select token_tracking_raw.has_usage_between(
        %s::timestamptz + %s * interval '1 microsecond',
        %s::timestamptz - %s * interval '1 microsecond',
        %s
    )
"""
_RECORDED: Final = """
    select index, kind, occurred_at, likeness, event_count
    from token_tracking_raw.recorded_usage(%s::json, %s, %s)
"""
_VOID: Final = """
    select voided, voided_before, other, missing
    from token_tracking_raw.void_recorded_usage(
        case set_config('lock_timeout', '5s', true) when '5s' then %s::json end, %s, %s, %s
    )
"""
# Raised if an earlier version made the raw schema or the roles.
_MISSING: Final = (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege)


class Alike(StrEnum):
    """What to do with a row that is already recorded under another key."""

    STOP = "stop"
    SKIP = "skip"
    RECORD = "record"


class OtherTime(NamedTuple):
    """A row that is recorded with another time: its index in the slice, and that time."""

    place: int
    recorded: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """What is recorded of a slice, by the index of the row."""

    alike: frozenset[int] = frozenset()
    voided: frozenset[int] = frozenset()
    other_times: tuple[OtherTime, ...] = ()
    claims: tuple[int, ...] = ()  # the groups of equal events that match the rows in `alike`


class Voided(NamedTuple):
    """The result of undoing the load of a slice."""

    voided: int
    voided_before: int
    other: int  # recorded, but not as the file and the options say
    missing: int


class Recorded:
    """Looks for events recorded before the load of one file, as cheaply as possible.

    Two rows are alike if tenant, time and tokens are equal, and every other value that both have.
    An event under another key matches at most one row of the file; the order of the rows decides
    which one, so that another load of the file finds the same match. Events of this load itself are
    ignored: their transactions are younger.
    """

    def __init__(self, database: Connection) -> None:
        self.is_able = True
        self._claimed = Ordinals()  # by group: how many events match rows of earlier slices
        row = database.execute(_NEXT_TRANSACTION).fetchone()
        self._before = cast("tuple[int]", row)[0]
        # A period without earlier events; all events of the load itself are within it.
        self._clear: tuple[bytes, bytes] | None = None

    def has_others(self, database: Connection, events: Sequence[Accepted]) -> bool:
        """Return whether `look` may find rows that are alike."""
        times = [time_of(event) for event in events]
        first, last = min(times), max(times)
        if self._clear is not None:
            first, last = min(first, self._clear[0]), max(last, self._clear[1])
            if (first, last) == self._clear:
                return False
        # Ask only about times outside the clear period, which may hold many rows of this load.
        for lower, after, upper, before in self._unknown(first, last):
            parameters = (lower.decode(), after, upper.decode(), before, self._before)
            if self._ask(database, _BETWEEN, parameters):
                return True
        self._clear = first, last
        return False

    def _unknown(self, first: bytes, last: bytes) -> list[tuple[bytes, int, bytes, int]]:
        """Return the periods to ask about; a 1 after a bound means that it is exclusive."""
        if self._clear is None:
            return [(first, 0, last, 0)]
        parts = [(first, 0, self._clear[0], 1)] if first < self._clear[0] else []
        return [*parts, (self._clear[1], 1, last, 0)] if last > self._clear[1] else parts

    def look(
        self, database: Connection, events: Sequence[Accepted], own_keys: Collection[str] = ()
    ) -> Found:
        """Return what is recorded of some events; `own_keys` are known keys of their own file."""
        payload = b"[" + b",".join(event.payload for event in events) + b"]"
        candidates: dict[int, list[tuple[int, int]]] = {}
        voided: set[int] = set()
        other_times: list[OtherTime] = []
        try:
            rows = database.execute(
                _RECORDED, (payload.decode(), self._before, list(own_keys))
            ).fetchall()
        except _MISSING:
            self.is_able = False
            return Found()
        answers = cast("list[tuple[int, str, datetime, int, int]]", rows)
        for index, kind, instant, likeness, event_count in answers:
            event = events[index]
            if kind == "voided":
                voided.add(index)
            elif kind == "other_time":
                if event.is_timed:
                    other_times.append(OtherTime(index, instant))
            # A row with a key of its own is identified by it, with or without outer space.
            elif event.is_timed and (kind == "spaced_key" or not event.is_named):
                candidates.setdefault(index, []).append((likeness, event_count))
        pairs = self._paired(candidates)
        return Found(frozenset(pairs), frozenset(voided), tuple(other_times), tuple(pairs.values()))

    def claim(self, found: Found) -> None:
        """Mark the events as used that match rows of a finished slice."""
        self._claimed.take(found.claims)

    def _paired(self, candidates: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, int]:
        """Return the rows that match an event, each with the group of its event.

        A matched row keeps its match if there are more events, or fewer unmatched rows: so the next
        load of the file skips the same rows.
        """
        groups = {likeness for some in candidates.values() for likeness, _ in some}
        claimed = Counter(self._claimed.counts_of(list(groups)))
        pairs: dict[int, int] = {}
        for place in sorted(candidates):
            for likeness, event_count in candidates[place]:
                if claimed[likeness] < event_count:
                    claimed[likeness] += 1
                    pairs[place] = likeness
                    break
        return pairs

    def _ask(self, database: Connection, query: str, parameters: tuple[object, ...]) -> bool:
        try:
            row = database.execute(query.encode(), parameters).fetchone()
        except _MISSING:
            self.is_able = False
            return False
        return bool(row and row[0])


def void_recorded(
    database: Connection, events: Sequence[Accepted], reason: str, *, is_trial: bool
) -> Voided:
    """Void the events that are recorded unchanged; in a trial, only count them."""
    payload = b"[" + b",".join(event.payload for event in events) + b"]"
    untimed = [place for place, event in enumerate(events) if not event.is_timed]
    row = database.execute(_VOID, (payload.decode(), untimed, reason, is_trial)).fetchone()
    return Voided(*cast("tuple[int, int, int, int]", row))
