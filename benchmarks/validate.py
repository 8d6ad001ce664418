"""`token-tracking validate` over ten million events: elapsed time and memory."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .builds import dbt
from .harness import past
from .harness.figures import Figure, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

EVENTS, REPETITIONS = 10_000_000, 3


def run(bench: Bench) -> list[Figure]:
    """Measure row 13."""
    database = bench.database()
    past.fill(database, EVENTS)
    dbt(database, bench.folder / "target", "build", "--exclude-resource-type", "test")
    runs = [_validated(database, bench.folder / "docs") for _ in range(REPETITIONS)]
    seconds, mebibytes = [one[0] for one in runs], [one[1] for one in runs]
    return [
        Figure(
            "13", f"validate {EVENTS:,} events", spread(seconds, "s", 1), "", max(seconds),
            "≤", 60, " s",
        ),
        Figure(
            "13", "peak resident memory of its process", spread(mebibytes, "MiB"), "",
            max(mebibytes), "≤", 500, " MiB",
        ),
    ]  # fmt: skip


def _validated(database: Database, docs: Path) -> tuple[float, float]:
    """Return seconds and MiB of one run of the command; all has to hold.

    The memory is what the kernel counts for the command's own process at its peak, shared libraries
    included: nothing of the server, whose queries have a work_mem of 64 MB.
    """
    program = Path(sys.executable).with_name("token-tracking")
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = os.posix_spawn(
            program,
            [program, "validate", "--format", "json", "--out", docs],
            {**os.environ, **database.env},
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)],
        )
        _, status, used = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read()
    if os.waitstatus_to_exitcode(status) or not json.loads(said)["success"]:
        raise RuntimeError(said.decode())
    return seconds, used.ru_maxrss / 1024
