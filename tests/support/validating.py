"""Validation in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.databases import Database
from token_tracking.validation.checkpoint import validate
from token_tracking.validation.report import Finding, Report


def validated(database: Database, folder: Path, **options: object) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in database.env.items():
            patch.setenv(name, value)
        return validate(folder, **options)  # type: ignore[arg-type]


def unsuccessful(report: Report) -> dict[str, Finding]:
    return {f"{suite}.{finding.name}": finding for suite, finding in report.unsuccessful()}
