"""Many events at once: `track_many`, and `token-tracking load` of a file with a million rows."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from .harness import peers, workload
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from pathlib import Path

    from .harness.bench import Bench, Database

EVENTS, REPETITIONS = 100_000, 3
FILE_EVENTS, FILE_PART = 1_000_000, 50_000
MIB = 1024

# In a process of its own, whose memory is then the client's.
MANY = """
import asyncio, json, logging, sys, time
from token_tracking import UsageTracker, track_many
logging.disable(logging.WARNING)

def events():
    with open(sys.argv[2]) as lines:
        for line in lines:
            yield json.loads(line)

async def main():
    async with UsageTracker(dsn=sys.argv[1]) as tracker:
        started = time.perf_counter()
        told = await tracker.track_many(events())
        return len(told), time.perf_counter() - started

number, seconds = asyncio.run(main())
peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
print(json.dumps([number, seconds, peak]))
"""
LOAD = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - started
assert done.returncode in (0, 3), done  # 3: some rows are in conflict, as the load has them
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def run(bench: Bench) -> list[Figure]:
    """Measure row 4; a bare run stands beside each of ours."""
    database = bench.database()
    database.run(peers.BARE_TABLE)
    many: list[float] = []
    bare: list[float] = []
    memory: list[float] = []
    for repetition in range(REPETITIONS + 1):
        bare.append(_bare(database, repetition))
        file = bench.folder / "many.jsonl"
        _write(file, EVENTS, seed=repetition)
        command = [sys.executable, "-c", MANY, database.url, str(file)]
        number, seconds, peak = json.loads(subprocess.check_output(command))
        many.append(number / seconds)
        memory.append(peak / MIB)
    many, bare = many[1:], bare[1:]

    loaded: list[float] = []
    beside: list[float] = []
    load_memory: list[float] = []
    for seed in range(2):
        target = bench.database()
        target.run(peers.BARE_TABLE)
        file = bench.folder / "load.jsonl"
        for part in range(FILE_EVENTS // FILE_PART):
            _write(file, FILE_PART, seed=1000 * (seed + 1) + part, mode="a")
        program = f"{sys.prefix}/bin/token-tracking"
        command = [sys.executable, "-c", LOAD, program, "load", str(file)]
        done = subprocess.check_output(command, env={**target.env, "PATH": "/usr/bin:/bin"})
        seconds, peak = json.loads(done)
        loaded.append(FILE_EVENTS / seconds)
        load_memory.append(peak / MIB)
        beside.append(_bare(target, 77))
        file.unlink()
    return [
        Figure(
            "4", "track_many", spread(many, "events/s"), f"bare: {spread(bare, 'events/s')}",
            median_ratio(many, bare), "≥", 0.9,
        ),
        Figure(
            "4", "load, 1 million", spread(loaded, "events/s"),
            f"bare: {spread(beside, 'events/s')}", median_ratio(loaded, beside), "≥", 0.9,
        ),
        Figure(
            "4", "memory, track_many", spread(memory, "MiB"), "", max(memory), "≤", 200, " MiB",
        ),
        Figure(
            "4", "memory, load", spread(load_memory, "MiB"), "", max(load_memory), "≤", 200,
            " MiB",
        ),
    ]  # fmt: skip


def _bare(database: Database, seed: int) -> float:
    batches = workload.batches(workload.events(EVENTS, seed))
    with closing(database.connect()) as connection:
        return EVENTS / peers.bare(connection, batches)


def _write(file: Path, number: int, *, seed: int, mode: str = "w") -> None:
    with file.open(mode) as lines:
        for event in workload.events(number, seed):
            print(json.dumps(event, default=lambda value: value.isoformat()), file=lines)
