"""Group roles with least privileges, for those who write, build and read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final, LiteralString, cast

import psycopg
from psycopg import sql

from ..errors import SchemaError
from .schema import apply_schema, trusted

if TYPE_CHECKING:
    from .schema import SchemaChange

PREFIX = "token_tracking_"
WAREHOUSE = "token_tracking"
_KINDS = ("owner", "writer", "transformer", "analyst", "biller", "tenant_reader")
_LONGEST_NAME = 63  # bytes; PostgreSQL truncates longer names
# CASCADE also revokes what the grantees granted to others.
_REVOKES: Final = tuple(
    sql.SQL(f"revoke all on {what} token_tracking_raw from {{role}} cascade")
    for what in ("schema", "all tables in schema", "all routines in schema")
)


@dataclass(frozen=True)
class RolesChange:
    """The changes made by applying the roles: to the raw schema, and to other roles' privileges."""

    schema: SchemaChange
    taken_from: tuple[str, ...]


@dataclass(frozen=True)
class Roles:
    """The six group roles, which share a prefix, and the schema that dbt builds in."""

    prefix: str = PREFIX
    warehouse: str = WAREHOUSE

    @property
    def names(self) -> dict[str, str]:
        """Return the roles' names by purpose."""
        return {kind: self.prefix + kind for kind in _KINDS}

    def apply(self, connection: psycopg.Connection[tuple[object, ...]]) -> RolesChange:
        """Apply the raw schema, create missing roles, and grant the roles their privileges.

        All other roles lose their privileges in the raw schema. Everything happens in one
        transaction; concurrent calls wait for each other. Roles belong to the whole cluster:
        databases with the same prefix share them.

        Raises:
            SchemaError: the connection's user lacks privileges, which the message names; or the
                schema cannot be applied.

        """
        if len(max(self.names.values(), key=len).encode()) > _LONGEST_NAME:
            message = f"the prefix {self.prefix!r} is too long: names have {_LONGEST_NAME} bytes"
            raise SchemaError(message)
        texts = {**self.names, "warehouse": self.warehouse}
        script = sql.SQL(_text_of("roles")).format(
            **{name: sql.Identifier(text) for name, text in texts.items()},
            **{f"{name}_text": sql.Literal(text) for name, text in texts.items()},
        )
        with connection.transaction():
            try:
                change = apply_schema(connection)
                connection.execute(script)
                taken_from = self._revoke_from_others(connection)
            except psycopg.errors.ObjectNotInPrerequisiteState as error:
                message = f"roles: {error.diag.message_primary}"
                raise SchemaError(message) from error
            except psycopg.errors.InsufficientPrivilege as error:
                message = (
                    f"roles: {error.diag.message_primary}. This takes a superuser, or a role with "
                    "CREATEROLE and CREATE on the database that owns its token-tracking schemas"
                )
                raise SchemaError(message) from error
        return RolesChange(change, taken_from)

    def _revoke_from_others(
        self, connection: psycopg.Connection[tuple[object, ...]]
    ) -> tuple[str, ...]:
        ours = list(self.names.values())
        rows = connection.execute(_text_of("other_grantees"), {"ours": ours}).fetchall()
        others = tuple(cast("str", name) for (name,) in rows)
        for role in others:
            for revoke in _REVOKES:
                connection.execute(revoke.format(role=sql.Identifier(role)))
        return others


def _text_of(name: str) -> LiteralString:
    return trusted((resources.files("token_tracking.raw") / f"{name}.sql").read_text("utf-8"))
