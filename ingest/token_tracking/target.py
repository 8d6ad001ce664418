"""Which database a connection string and libpq's variables lead to, for people's eyes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.pq import Conninfo

from .errors import SettingsError

if TYPE_CHECKING:
    from typing import Self

_HARMLESS: Final = re.compile(r"[\w./:,\[\]-]*")
_NO_SCHEMA: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
)


@dataclass(frozen=True)
class Target:
    """Where a connection goes; never its password.

    A password that was not percent-encoded can end up in any part of a URL: `is_clear` is False
    where a part looks like that, and then none is shown.
    """

    host: str
    port: str
    user: str
    database: str

    @classmethod
    def of(cls, dsn: str | None = None) -> Self:
        """Return the target of a connection string, by default that of TOKEN_TRACKING_DSN.

        Raises:
            SettingsError: it cannot be read.

        """
        given = dsn if dsn is not None else os.environ.get("TOKEN_TRACKING_DSN", "")
        try:
            options = Conninfo.parse(given.encode())
        except psycopg.OperationalError as error:
            message = (
                "TOKEN_TRACKING_DSN is no connection string: postgresql://user@host:5432/database "
                "or host=... dbname=... (a password in a URL is percent-encoded)"
            )
            # Without its cause, which shows pieces of the string.
            raise SettingsError(message) from (error if not given else None)
        parts = {option.keyword: option.val for option in options if option.val is not None}
        for option in Conninfo.get_defaults():
            if option.val is not None:
                parts.setdefault(option.keyword, option.val)
        read = {name.decode(): value.decode(errors="replace") for name, value in parts.items()}
        user = read.get("user", "")
        return cls(
            host=read.get("hostaddr") or read.get("host", ""),
            port=read.get("port", "5432"),
            user=user,
            database=read.get("dbname") or user,
        )

    @property
    def is_clear(self) -> bool:
        """Say whether no part can hold a piece of a password."""
        port_is_number = all(part.isdecimal() for part in self.port.split(","))
        return port_is_number and all(
            _HARMLESS.fullmatch(part) for part in (self.host, self.user, self.database)
        )

    @property
    def folder_name(self) -> str:
        """Return a file name that is the same for the same server and database, for any user."""
        server = "\n".join((self.host, self.port, self.database))
        clean = re.sub(r"[^A-Za-z0-9_-]", "_", self.database)[:40]
        return f"{clean}-{sha256(server.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        if not self.is_clear:
            return "the database of TOKEN_TRACKING_DSN"
        place = self.host or "the local socket"
        return f"database {self.database} at {place}:{self.port} as user {self.user}"

    def explain(self, error: psycopg.Error) -> str:
        """Say in one sentence what went wrong there, without any value of a row."""
        if isinstance(error, _NO_SCHEMA):
            return f"{self} has no token_tracking_raw schema: run token-tracking schema apply"
        said = error.diag.message_primary
        if said is not None:
            return f"{self} refused: {said}"
        if not isinstance(error, psycopg.OperationalError) or not self.is_clear:
            return f"{self} cannot be used: {type(error).__name__}"
        return f"{self} cannot be reached: {_one_line(str(error))}"


def differing_databases() -> str | None:
    """Say that TOKEN_TRACKING_DSN and libpq's variables lead to two databases, where they do."""
    ingest, others = Target.of(), Target.of("")
    if ingest.folder_name == others.folder_name:
        return None
    return (
        f"TOKEN_TRACKING_DSN leads services to another database ({ingest}) than libpq's variables, "
        f"which count here ({others})"
    )


def _one_line(text: str) -> str:
    """Return what libpq says of its last attempt, without its advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if "failed" in line or "error" in line] or lines[:1]
    return failures[-1].removeprefix("- ") if failures else "no reason given"
