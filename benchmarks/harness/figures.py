"""Figures: a measure of ours beside that of a peer in the same run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Figure:
    """One row of the results: ours, the peer's, and their ratio or the measure itself.

    `number` is what `target` is about; `sign` says on which side of it the number should be.
    """

    row: str
    measure: str
    ours: str
    peer: str
    number: float
    sign: Literal["≥", "≤"]
    target: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Say whether the number is on the right side of the target."""
        return self.number >= self.target if self.sign == "≥" else self.number <= self.target

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table."""
        target = f"{self.sign} {self.target:g}{self.unit}"
        verdict = "met" if self.met else "missed"
        number = f"{self.number:.2f}{self.unit}" if self.number < 100 else f"{self.number:,.0f}"
        return self.row, self.measure, self.ours, self.peer, number, target, verdict


HEADINGS = ("row", "measure", "ours", "peer", "number", "target", "")


def median_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Return the median of the ratios of neighbours: both of a pair saw the same machine."""
    return statistics.median(mine / other for mine, other in zip(ours, peer, strict=True))


def spread(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Return median, least and most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} {unit} ({least:,.{digits}f} to {most:,.{digits}f})"
