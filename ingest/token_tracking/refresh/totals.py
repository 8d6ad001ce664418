"""Queries what the saved totals include and what has arrived since, in a few milliseconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, cast

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from ..client.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeVar

    T = TypeVar("T")

# Maximum seconds of a query: after a long pause, many rows may have arrived.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Totals:
    """The state that the saved totals were built from.

    `inputs` changes with everything that the totals depend on except raw rows and project files.
    """

    snapshot: str | None
    run_number: int | None
    price_snapshot: str | None
    is_behind: bool
    inputs: str


@dataclass(frozen=True)
class Arrivals:
    """The raw rows that arrived between two snapshots; `lag` is the oldest one's age in seconds."""

    events: int
    voids: int
    owners: int
    lag: float | None


NOTHING = Totals(None, None, None, is_behind=True, inputs="")


class Watch:
    """A connection to the warehouse's database, opened on demand."""

    def __init__(self, schema: str, relations: Sequence[str]) -> None:
        self.schema: str = schema
        self.relations: list[str] = list(relations)
        self._database: Connection | None = None

    def totals(self) -> Totals:
        """Return the state that the saved totals were built from."""
        try:
            return self._one("totals", Totals, {"relations": self.relations})
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            # Nothing was ever built, or not by this version.
            return NOTHING

    def is_waiting(self, since: str, prices_since: str) -> bool:
        """Return whether a raw row, or a price, has arrived since the snapshot that it is in."""
        values = {"since": since, "prices_since": prices_since}
        return self._one("is_waiting", _Waiting, values).is_waiting

    def arrivals(self, since: str, until: str | None = None) -> Arrivals:
        """Count rows that `until` (default: the current snapshot) sees and `since` does not."""
        return self._one("arrivals", Arrivals, {"since": since, "until": until})

    def close(self) -> None:
        """Close the connection; the next query opens another one."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def connect(self) -> Connection:
        """Return the connection; open a new one if the last one is broken.

        Raises:
            psycopg.OperationalError: the connection failed.

        """
        if self._database is None or not self._database.is_idle():
            self.close()
            self._database = Connection.open("", patience=_PATIENCE)
            # Like dbt, switch to the role: the login itself may lack privileges.
            role = os.environ.get("DBT_ROLE") or "none"
            self._database.execute(
                "select set_config('role', %s, false),"
                " set_config('search_path', quote_ident(%s) || ', pg_temp', false),"
                " set_config('statement_timeout', %s, false)",
                (role, self.schema, str(round(_PATIENCE * 1000))),
            )
        return self._database

    def _one(self, query: str, kind: type[T], values: Mapping[str, object]) -> T:
        file = resources.files("token_tracking") / "refresh" / "queries" / f"{query}.sql"
        text = sql.SQL(cast("LiteralString", file.read_text("utf-8")))
        with self.connect().cursor(row_factory=class_row(kind)) as cursor:
            return cast("T", cursor.execute(text, values).fetchone())


@dataclass(frozen=True)
class _Waiting:
    is_waiting: bool
