"""Reads the output of the last `token-tracking validate --format json`."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ValidationError

from ..errors import ReportError

if TYPE_CHECKING:
    from pathlib import Path

    from ..target import Target


class _Finding(BaseModel):
    success: bool


class _Suite(BaseModel):
    findings: list[_Finding]


class Validation(BaseModel):
    """The result of the last validation; it is a success even with warnings."""

    success: bool
    database: str
    as_of: AwareDatetime
    suites: list[_Suite]

    @classmethod
    def read(cls, file: Path) -> Validation:
        """Read the result from a file.

        Raises:
            ReportError: the file does not hold such a result.
            OSError: the file cannot be read.

        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its text"
            message = (
                f"{file} is not a result of token-tracking validate --format json: "
                f"see {place} in it"
            )
            raise ReportError(message) from error

    def is_of(self, target: Target) -> bool:
        """Return whether it validated this database, as any user."""
        return self.database.partition(" as user ")[0] == str(target).partition(" as user ")[0]

    @property
    def has_no_warning(self) -> bool:
        """Return whether every expectation holds."""
        return all(finding.success for suite in self.suites for finding in suite.findings)

    @property
    def sentence(self) -> str:
        """Return the result as a sentence."""
        findings = [finding.success for suite in self.suites for finding in suite.findings]
        when = self.as_of.astimezone(UTC)
        return (
            f"{sum(findings):,} of {len(findings):,} expectations of Great Expectations hold as of "
            f"{when:%Y-%m-%d %H:%M} UTC."
            + ("" if self.has_no_warning else " Its Data Docs show which do not.")
        )
