"""The warehouse of one test, and the project that builds it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.databases import TEMPLATE, Database, copy_database, fresh_database
from tests.support.project import DbtProject
from tests.support.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from token_tracking.embedded.server import Server


@pytest.fixture(scope="session")
def built_template(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with totals of no events and without aliases."""
    name = f"template_built_{os.getpid()}"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        copy_database(connection, name, TEMPLATE)
    DbtProject(server.environment(name), tmp_path_factory.mktemp("built")).must("run")
    return name


@pytest.fixture
def prebuilt(server: Server, built_template: str) -> Iterator[Database]:
    """A fresh database whose first build is over, which takes twice as long as any other."""
    yield from fresh_database(server, built_template)


@pytest.fixture
def warehouse(database: Database) -> Warehouse:
    return Warehouse(database)


@pytest.fixture
def project(database: Database, tmp_path: Path) -> DbtProject:
    # The server's sessions are in UTC; dbt's are not.
    return DbtProject({**database.env, "PGTZ": "Asia/Kolkata"}, tmp_path)
