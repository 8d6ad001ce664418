"""Who reads the marts: all of their rows, or only those that row-level security shows them."""

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
    """A role, and whether a policy shows it only a part of the marts."""

    role: str
    is_restricted: bool

    @classmethod
    def of(
        cls, connection: psycopg.Connection[tuple[object, ...]], schema: str | None = None
    ) -> Self:
        """Return who the connection's user is to the marts of a schema, by default the first found.

        Where there are no marts nobody is restricted.
        """
        file = resources.files("token_tracking.marts") / "reader.sql"
        query = cast("LiteralString", file.read_text("utf-8"))
        with connection.cursor(row_factory=class_row(cls)) as cursor:
            [reader] = cursor.execute(query, {"schema": schema}).fetchall()
        return reader
