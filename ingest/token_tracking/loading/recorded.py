"""What the database holds already of the rows of a file, under their keys and under other ones."""

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
# Of a raw schema, or of roles, that an earlier version made.
_MISSING: Final = (psycopg.errors.UndefinedFunction, psycopg.errors.InsufficientPrivilege)


class Alike(StrEnum):
    """What to do with a row that is recorded under another key."""

    STOP = "stop"
    SKIP = "skip"
    RECORD = "record"


class OtherTime(NamedTuple):
    """A row that is recorded with another time: its place in the slice, and that time."""

    place: int
    recorded: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """What is recorded of a slice, by the places of its rows."""

    alike: frozenset[int] = frozenset()
    voided: frozenset[int] = frozenset()
    other_times: tuple[OtherTime, ...] = ()
    claims: tuple[int, ...] = ()  # the groups of equal events that stand for the rows in `alike`


class Voided(NamedTuple):
    """What became of the events of a slice whose load is taken back."""

    voided: int
    voided_before: int
    other: int  # recorded, but not as the file and the options say
    missing: int


class Recorded:
    """Looks for what was recorded before one file's load, as cheaply as the case allows.

    Two rows are alike where nothing tells them apart: tenant, time and tokens are the same, and
    what else both say. An event under another key stands for one row of the file at most; which
    one, the order of rows decides, so that a further load of the file finds the same. What this
    load itself records is left aside: its transactions are younger.
    """

    def __init__(self, database: Connection) -> None:
        self.is_able = True
        self._claimed = Ordinals()  # how many events of a group stand for rows of earlier slices
        row = database.execute(_NEXT_TRANSACTION).fetchone()
        self._before = cast("tuple[int]", row)[0]
        # No event of before is within; what the load itself recorded is not outside.
        self._clear: tuple[bytes, bytes] | None = None

    def has_others(self, database: Connection, events: Sequence[Accepted]) -> bool:
        """Say whether a closer look may find rows that are alike."""
        times = [time_of(event) for event in events]
        first, last = min(times), max(times)
        if self._clear is not None:
            first, last = min(first, self._clear[0]), max(last, self._clear[1])
            if (first, last) == self._clear:
                return False
        # Only outside of what is clear: the load's own rows within are no answer, and may be many.
        for lower, after, upper, before in self._unknown(first, last):
            parameters = (lower.decode(), after, upper.decode(), before, self._before)
            if self._ask(database, _BETWEEN, parameters):
                return True
        self._clear = first, last
        return False

    def _unknown(self, first: bytes, last: bytes) -> list[tuple[bytes, int, bytes, int]]:
        """Return the periods to ask about, with 1 at an end that does not belong to it."""
        if self._clear is None:
            return [(first, 0, last, 0)]
        parts = [(first, 0, self._clear[0], 1)] if first < self._clear[0] else []
        return [*parts, (self._clear[1], 1, last, 0)] if last > self._clear[1] else parts

    def look(
        self, database: Connection, events: Sequence[Accepted], own_keys: Collection[str] = ()
    ) -> Found:
        """Return what is recorded of some events; `own_keys` are those of their file, as known."""
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
            # A key of the row's own says what the row is; without its outer space, too.
            elif event.is_timed and (kind == "spaced_key" or not event.is_named):
                candidates.setdefault(index, []).append((likeness, event_count))
        pairs = self._paired(candidates)
        return Found(frozenset(pairs), frozenset(voided), tuple(other_times), tuple(pairs.values()))

    def claim(self, found: Found) -> None:
        """Use up the events that stand for rows of a slice which is done."""
        self._claimed.take(found.claims)

    def _paired(self, candidates: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, int]:
        """Return the rows that an event stands for, each with the group of its event.

        More events, or fewer rows that none is left for, never leave a row without one that had
        one: so the next load of the file leaves out the same rows.
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
    """Void those of some events that are recorded as they are; in a trial, only count them."""
    payload = b"[" + b",".join(event.payload for event in events) + b"]"
    untimed = [place for place, event in enumerate(events) if not event.is_timed]
    row = database.execute(_VOID, (payload.decode(), untimed, reason, is_trial)).fetchone()
    return Voided(*cast("tuple[int, int, int, int]", row))
