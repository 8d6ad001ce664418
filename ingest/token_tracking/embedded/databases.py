"""The embedded server that the commands use: its folder, its databases, its environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from .server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_OTHERS: Final = ("PG", "DBT_", "TOKEN_TRACKING_")


def server_in(folder: Path) -> Server:
    """Return the server whose data is below a folder; it is not started."""
    return Server(folder / "postgres")


def create_database(server: Server, name: str) -> bool:
    """Create a database if it does not exist; return whether it was created."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        known = connection.execute("select from pg_database where datname = %s", (name,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return known is None


def forget_other_databases() -> list[str]:
    """Unset all variables that lead to other databases; return their names."""
    names = sorted(name for name in os.environ if name.startswith(_OTHERS))
    for name in names:
        del os.environ[name]
    return names


def environment(libpq: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these libpq variables instead of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return kept | dict(libpq)
