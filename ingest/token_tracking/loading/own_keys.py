"""The keys of a file's rows by time: read once, kept in bounded memory."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from ..errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class OwnKeys:
    """Looks up the keys of a file's rows by time, in a temporary SQLite file.

    It is filled with each row's `occurred_at` and key, in the form of the payloads.

    Raises:
        LoadError: there is no space for the temporary file.

    """

    def __init__(self, timed_keys: Iterable[tuple[str, str]]) -> None:
        # An empty name makes a temporary file, which needs neither sync nor journal.
        self._rows = sqlite3.connect("", isolation_level=None)
        try:
            self._rows.execute("pragma journal_mode = off")
            self._rows.execute("pragma synchronous = off")
            self._rows.execute("pragma cache_size = -16384")
            self._rows.execute("create table keys (time text not null, key text not null)")
            self._rows.execute("begin")
            self._rows.executemany("insert into keys (time, key) values (?, ?)", timed_keys)
            self._rows.execute("create index at_time on keys (time)")
        except sqlite3.Error as error:
            self.close()
            message = f"the temporary file of the rows' keys (in TMPDIR) fails: {error}"
            raise LoadError(message) from error

    def at(self, times: Collection[str]) -> list[str]:
        """Return the distinct keys of the rows at these times."""
        found = self._rows.execute(
            "select distinct key from keys where time in (select value from json_each(?))",
            (json.dumps(list(times)),),
        )
        return [key for (key,) in found]

    def close(self) -> None:
        """Remove the temporary file."""
        self._rows.close()
