"""What `token-tracking validate --format json` printed of its last run."""

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
    """How the last validation ended; warnings leave it a success."""

    success: bool
    database: str
    as_of: AwareDatetime
    suites: list[_Suite]

    @classmethod
    def read(cls, file: Path) -> Validation:
        """Read the result out of a file.

        Raises:
            ReportError: it is none.
            OSError: the file cannot be read.

        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its text"
            message = (
                f"{file} is no result of token-tracking validate --format json: see {place} in it"
            )
            raise ReportError(message) from error

    def is_of(self, target: Target) -> bool:
        """Say whether it was of a database, whoever the user was."""
        return self.database.partition(" as user ")[0] == str(target).partition(" as user ")[0]

    @property
    def has_no_warning(self) -> bool:
        """Say whether every expectation holds."""
        return all(finding.success for suite in self.suites for finding in suite.findings)

    @property
    def sentence(self) -> str:
        """Return what it found."""
        findings = [finding.success for suite in self.suites for finding in suite.findings]
        when = self.as_of.astimezone(UTC)
        return (
            f"{sum(findings):,} of {len(findings):,} expectations of Great Expectations hold as of "
            f"{when:%Y-%m-%d %H:%M} UTC."
            + ("" if self.has_no_warning else " Its Data Docs show which do not.")
        )
