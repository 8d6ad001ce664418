"""The role that reads the marts, and whether row-level security restricts it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, cast

from psycopg.rows import class_row

if TYPE_CHECKING:
    from typing import Self

    import psycopg

WHO_READS_ALL = (
    "members of token_tracking_analyst read all, and after the next dbt build every role that "
    "`grants` in dbt_project.yml names"
)


@dataclass(frozen=True)
class Reader:
    """A role, and whether a policy hides some of the marts' rows from it."""

    role: str
    is_restricted: bool

    @classmethod
    def of(
        cls, connection: psycopg.Connection[tuple[object, ...]], schema: str | None = None
    ) -> Self:
        """Return the reader for the connection's user and a schema, by default the first found.

        If there are no marts, nobody is restricted.
        """
        file = resources.files("token_tracking.marts") / "reader.sql"
        query = cast("LiteralString", file.read_text("utf-8"))
        with connection.cursor(row_factory=class_row(cls)) as cursor:
            [reader] = cursor.execute(query, {"schema": schema}).fetchall()
        return reader
