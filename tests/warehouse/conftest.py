"""The warehouse of one test, and the project that builds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.project import DbtProject
from tests.support.warehouse import Warehouse


@pytest.fixture
def warehouse(database: Database) -> Warehouse:
    return Warehouse(database)


@pytest.fixture
def project(database: Database, tmp_path: Path) -> DbtProject:
    # The server's sessions are in UTC; dbt's are not.
    return DbtProject({**database.env, "PGTZ": "Asia/Kolkata"}, tmp_path)
