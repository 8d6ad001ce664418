"""The findings of a validation: as a table for people, as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from .suites import Severity

Cell = str | int | None


@dataclass(frozen=True)
class Finding:
    """The result of one expectation: `rows` are the first of `row_count` offending ones.

    `problem` is the error that prevented the check; the expectation then counts as not successful.
    """

    name: str
    severity: Severity
    success: bool
    row_count: int
    rows: tuple[dict[str, Cell], ...]
    otherwise: str
    problem: str | None

    @property
    def fails(self) -> bool:
        """Return whether it makes the validation fail; an unchecked expectation always does."""
        return not self.success and (self.severity == "critical" or self.problem is not None)


@dataclass(frozen=True)
class SuiteReport:
    """The findings of one suite."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def only_warns(self) -> bool:
        """Return whether an expectation does not hold, but none fails."""
        not_held = [finding for finding in self.findings if not finding.success]
        return bool(not_held) and not any(finding.fails for finding in not_held)


@dataclass(frozen=True)
class Report:
    """All suites' findings, of one snapshot of the database."""

    database: str
    as_of: datetime
    docs: Path
    suites: tuple[SuiteReport, ...]

    @property
    def success(self) -> bool:
        """Return whether no expectation fails; warnings do not count."""
        return not any(finding.fails for suite in self.suites for finding in suite.findings)

    def summary(self) -> Table:
        """Return one line per suite."""
        table = Table("suite")
        for name in ("hold", "fail", "warn"):
            table.add_column(name, justify="right")
        for suite in self.suites:
            hold = sum(finding.success for finding in suite.findings)
            fail = sum(finding.fails for finding in suite.findings)
            counts = (hold, fail, len(suite.findings) - hold - fail)
            table.add_row(suite.name, *(f"{count:,}" for count in counts))
        return table

    def unsuccessful(self) -> list[tuple[str, Finding]]:
        """Return the findings that do not hold, each with the name of its suite."""
        return [
            (suite.name, finding)
            for suite in self.suites
            for finding in suite.findings
            if not finding.success
        ]

    def as_json(self) -> dict[str, object]:
        """Return the whole report as a JSON object."""
        return {
            "success": self.success,
            "database": self.database,
            "as_of": self.as_of.isoformat(),
            "data_docs": str(self.docs),
            "suites": [asdict(suite) for suite in self.suites],
        }


def rows_table(finding: Finding) -> Table:
    """Return the offending rows of a finding."""
    columns = list(finding.rows[0])
    table = Table(*columns)
    for row in finding.rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    return table
