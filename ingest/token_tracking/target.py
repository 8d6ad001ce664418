"""Describes, for people, the database that a connection string and libpq's variables lead to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

from .errors import SettingsError

if TYPE_CHECKING:
    from typing import Self

# Options of other programs that users pass to libpq; any other word may be part of a password.
_FOREIGN: Final = {
    *("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "echo"),
    *("schema", "pgbouncer", "connection_limit", "sslaccept", "charset", "ssl", "sslmode"),
    *("statement_cache_size", "prepared_statement_cache_size", "prepare_threshold"),
    *("command_timeout", "timeout", "server_settings", "async_fallback", "autocommit"),
    *("minconn", "maxconn", "min_size", "max_size", "min_pool_size", "max_pool_size"),
}
_SCHEME: Final = re.compile(r"(\w+)\+(\w+)://")
_HARMLESS: Final = re.compile(r"[\w./:,\[\]-]*")
_NEVER: Final = "to be read and not connected to"
_NO_SCHEMA: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
)


def given_dsn(dsn: str | None = None) -> str:
    """Return a connection string, by default TOKEN_TRACKING_DSN, without outer space."""
    return (dsn if dsn is not None else os.environ.get("TOKEN_TRACKING_DSN", "")).strip()


def dsn_problem(dsn: str) -> str | None:
    """Return why libpq cannot parse a connection string, without any part of a password."""
    try:
        conninfo_to_dict(dsn)
    except psycopg.Error as error:
        if scheme := _SCHEME.match(dsn):
            said = f"{scheme[0]} is SQLAlchemy's form, write postgresql://"
        elif dsn.startswith(("'", '"')):
            said = "it begins with a quotation mark"
        else:
            said = re.sub(r'"(.*?)"', _quoted_if_foreign, str(error).strip(), flags=re.DOTALL)
        return (
            f"libpq cannot read it ({said}); must be postgresql://user@host:5432/database or "
            "host=... dbname=... (a password in a URL is percent-encoded)"
        )
    return None


def _quoted_if_foreign(found: re.Match[str]) -> str:
    return found[0] if found[1] in _FOREIGN or len(found[1]) == 1 else '"..."'


@dataclass(frozen=True)
class Target:
    """The target of a connection, without its password.

    A password that was not percent-encoded can end up in any part of a URL: if a part looks like
    that, `is_clear` is False and no part is shown. `service` is the name of a service that libpq
    cannot find; nothing else is known then.
    """

    host: str = ""
    port: str = ""
    user: str = ""
    database: str = ""
    service: str = ""

    @classmethod
    def of(cls, dsn: str | None = None) -> Self:
        """Return the target of a connection string, by default that of TOKEN_TRACKING_DSN.

        Raises:
            SettingsError: it cannot be parsed.

        """
        given = given_dsn(dsn)
        if problem := dsn_problem(given):
            message = f"TOKEN_TRACKING_DSN is not a valid connection string: {problem}"
            raise SettingsError(message)
        options = conninfo_to_dict(given)
        read = _resolved(given)
        if "sslmode" not in read:
            return cls(service=str(options.get("service") or os.environ.get("PGSERVICE", "")))
        user = read.get("user", "")
        return cls(
            host=read.get("hostaddr") or read.get("host", ""),
            port=read.get("port", "5432"),
            user=user,
            database=read.get("dbname") or user,
        )

    @property
    def is_clear(self) -> bool:
        """Return whether no part can contain a part of a password."""
        parts = (self.host, self.user, self.database, self.service)
        port_is_number = all(part.isdecimal() for part in self.port.split(",")) or not self.port
        return port_is_number and all(_HARMLESS.fullmatch(part) for part in parts)

    @property
    def folder_name(self) -> str:
        """Return a file name that depends on server and database, but not on the user."""
        name = self.database or self.service
        server = "\n".join((self.host, self.port, name))
        clean = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
        return f"{clean}-{sha256(server.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        if not self.is_clear:
            return "the database of TOKEN_TRACKING_DSN"
        if self.service:
            return f"the database of service {self.service}"
        place = self.host or "the local socket"
        return f"database {self.database} at {place}:{self.port} as user {self.user}"

    def explain(self, error: psycopg.Error) -> str:
        """Describe an error in one sentence, without values of rows."""
        if isinstance(error, _NO_SCHEMA):
            return f"{self} has no token_tracking_raw schema: run token-tracking schema apply"
        said = error.diag.message_primary
        if said is not None:
            return f"{self} refused: {said}"
        said = self.said(error)
        if said is None:
            return f"{self} cannot be used: {type(error).__name__}"
        return f"{self} cannot be reached: {said}"

    def said(self, error: psycopg.Error) -> str | None:
        """Return libpq's message of a failed connection; None if it may show a password."""
        if not isinstance(error, psycopg.OperationalError) or not self.is_clear:
            return None
        return _one_line(str(error))


def _resolved(dsn: str) -> dict[str, str]:
    """Return libpq's options from a string, its variables and service files; empty if invalid.

    libpq reveals them only for a connection. This one fails before it connects, due to its sslmode.
    """
    never = make_conninfo(dsn, sslmode=_NEVER, password=_NEVER)  # the password: skip .pgpass
    connection = PGconn.connect_start(never.encode())
    try:
        return {
            option.keyword.decode(): option.val.decode(errors="replace")
            for option in connection.info
            if option.val is not None
        }
    finally:
        connection.finish()


def differing_databases() -> str | None:
    """Return a warning if TOKEN_TRACKING_DSN and libpq's variables lead to different databases."""
    ingest, others = Target.of(), Target.of("")
    if ingest.folder_name == others.folder_name:
        return None
    return (
        f"TOKEN_TRACKING_DSN leads services to another database ({ingest}) than libpq's variables, "
        f"which count here ({others})"
    )


def _one_line(text: str) -> str:
    """Return libpq's message about its last attempt, without its advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if "failed" in line or "error" in line] or lines[:1]
    said = failures[-1] if failures else "no reason given"
    return said.removeprefix("connection is bad: ").removeprefix("- ")
