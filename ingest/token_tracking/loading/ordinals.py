"""Counts how often each row has occurred, in bounded memory for files of any length."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Final

from ..errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

MOST_IN_MEMORY: Final = 200_000


class Ordinals:
    """Counts rows by fingerprint, a signed 64-bit number.

    The latest counts are in memory. Above `most_in_memory`, they are moved in sorted order to a
    temporary SQLite file: so each one costs only a fraction of a single insert.
    """

    def __init__(self, most_in_memory: int = MOST_IN_MEMORY) -> None:
        self._most = most_in_memory
        self._recent: dict[int, int] = {}
        self._older: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._older is not None:
            self._older.close()

    def take(self, fingerprints: Sequence[int]) -> list[int]:
        """Count the fingerprints; return for each how many equal ones came before it.

        Raises:
            LoadError: there is no space for the temporary file.

        """
        recent = self._recent
        try:
            older = self._look_up(fingerprints)
            ordinals: list[int] = []
            for fingerprint in fingerprints:
                count = recent.get(fingerprint)
                if count is None:
                    count = older.get(fingerprint, 0)
                recent[fingerprint] = count + 1
                ordinals.append(count)
            if len(recent) > self._most:
                self._move_to_file()
        except sqlite3.Error as error:
            message = f"the temporary file that counts equal rows (in TMPDIR) fails: {error}"
            raise LoadError(message) from error
        return ordinals

    def counts_of(self, fingerprints: Sequence[int]) -> dict[int, int]:
        """Return the current counts without changing them; a count of 0 may be absent."""
        counts = self._look_up(fingerprints)
        recent = self._recent
        counts.update((one, recent[one]) for one in fingerprints if one in recent)
        return counts

    def _look_up(self, fingerprints: Sequence[int]) -> dict[int, int]:
        if self._older is None:
            return {}
        return dict(
            self._older.execute(
                "select fingerprint, count from seen"
                " where fingerprint in (select value from json_each(?))",
                (json.dumps(fingerprints),),
            )
        )

    def _move_to_file(self) -> None:
        if self._older is None:
            # An empty name makes a temporary file, which needs neither sync nor journal.
            self._older = sqlite3.connect("", isolation_level=None)
            self._older.execute("pragma journal_mode = off")
            self._older.execute("pragma synchronous = off")
            self._older.execute("pragma cache_size = -16384")
            self._older.execute(
                "create table seen (fingerprint integer primary key, count integer not null)"
            )
            self._older.execute("begin")
        self._older.executemany(
            "insert into seen (fingerprint, count) values (?, ?)"
            " on conflict (fingerprint) do update set count = excluded.count",
            sorted(self._recent.items()),
        )
        self._recent.clear()
