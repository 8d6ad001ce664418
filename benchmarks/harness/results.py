"""The results: a table on screen, and RESULTS.md with the machine that they are of."""

from __future__ import annotations

import json
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
    from collections.abc import Mapping, Sequence

    from .figures import Figure

RESULTS = Path(__file__).parents[1] / "RESULTS.md"
KEPT = Path(__file__).parents[2] / ".token-tracking" / "benchmarks"


def show(title: str, figures: Sequence[Figure], seconds: float) -> None:
    """Print one benchmark's figures."""
    table = Table(*HEADINGS, title=f"{title} ({seconds:,.0f} s)", title_justify="left")
    for figure in figures:
        table.add_row(*figure.cells())
    Console(width=150).print(table)


def keep(name: str, title: str, figures: Sequence[Figure], server: str) -> None:
    """Keep one benchmark's figures, and write RESULTS.md of the newest of each."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {"title": title, "machine": machine(server), "rows": [one.cells() for one in figures]}
    (KEPT / f"{name}.json").write_text(json.dumps(kept))
    newest = [json.loads(file.read_text()) for file in sorted(KEPT.glob("*.json"))]
    RESULTS.write_text(_document(newest), encoding="utf-8")


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


def _document(newest: Sequence[Mapping[str, object]]) -> str:
    settings = ", ".join(f"`{name}={value}`" for name, value in SETTINGS.items())
    lines = [
        "# Results",
        "",
        "`make bench` writes this page; `make bench BENCH=name` repeats one benchmark. Client and"
        " server share the machine, so absolute times depend on it. In rows with a peer, the number"
        " is the ratio to the peer in the same run: the median over neighbouring pairs or, for"
        " `counters`, the ratio of the medians. In rows without a peer, it is the measured value.",
        "",
        f"Server: {settings}.",
    ]
    for one in newest:
        lines += ["", f"## {one['title']}", "", f"{one['machine']}", ""]
        lines += [_row(HEADINGS), _row(["---"] * len(HEADINGS))]
        lines += [_row(row) for row in one["rows"]]  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
