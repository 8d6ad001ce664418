"""The results: a table on screen, and RESULTS.md with the machine that they are of."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from .bench import SETTINGS
from .figures import HEADINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Figure

RESULTS = Path(__file__).parents[1] / "RESULTS.md"
_SECTION = "\n## "


def show(title: str, figures: Sequence[Figure], seconds: float) -> None:
    """Print one benchmark's figures."""
    table = Table(*HEADINGS, title=f"{title} ({seconds:,.0f} s)", title_justify="left")
    for figure in figures:
        table.add_row(*figure.cells())
    Console(width=150).print(table)


def keep(title: str, figures: Sequence[Figure], server: str) -> None:
    """Put one benchmark's figures into RESULTS.md, in place of its older ones."""
    _, *sections = RESULTS.read_text(encoding="utf-8").split(_SECTION)
    section = "\n".join(
        [
            *(title, "", machine(server), ""),
            *(_row(HEADINGS), _row(["---"] * len(HEADINGS))),
            *(_row(figure.cells()) for figure in figures),
            "",
        ]
    )
    by_name = {one.partition(":")[0]: one for one in (*sections, section)}
    parts = [_introduction(), *(by_name[name].rstrip("\n") + "\n" for name in sorted(by_name))]
    RESULTS.write_text(_SECTION.join(parts), encoding="utf-8")


def machine(server: str) -> str:
    """Say what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("psycopg", "pydantic", "dbt-core"))
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, PostgreSQL {server}, {packages}"
    )


def _introduction() -> str:
    settings = ", ".join(f"`{name}={value}`" for name, value in SETTINGS.items())
    return (
        "# Results\n\n"
        "`make bench` writes this page; `make bench BENCH=name` repeats one benchmark. Client and"
        " server share the machine, so absolute times depend on it. In rows with a peer, the number"
        " is the ratio to the peer in the same run: the median over neighbouring pairs or, for"
        " `counters`, the ratio of the medians. In rows without a peer, it is the measured value."
        f"\n\nServer: {settings}.\n"
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
