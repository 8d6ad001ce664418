"""Validation in this process."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.databases import Database
from token_tracking.validation.checkpoint import validate
from token_tracking.validation.report import Finding, Report
from token_tracking.validation.suites import suites


def validated(database: Database, folder: Path, **options: object) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in database.env.items():
            patch.setenv(name, value)
        return validate(folder, **options)  # type: ignore[arg-type]


def unsuccessful(report: Report) -> dict[str, Finding]:
    return {f"{suite}.{finding.name}": finding for suite, finding in report.unsuccessful()}


def rows_found(connection: psycopg.Connection[tuple], name: str) -> list[tuple[object, ...]]:
    """Return what the expectation of that name finds, without Great Expectations."""
    [wanted] = [check for suite in suites() for check in suite.checks if check.name == name]
    connection.execute("set search_path = token_tracking")
    found = connection.execute(wanted.query).fetchall()
    return [row for row in found if row[0] == wanted.rule]
