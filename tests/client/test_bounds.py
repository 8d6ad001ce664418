"""The bounds of memory in an outage, of the event loop's stalls, and of a call's wait.

In `make test` in proportion; `make soak` makes 1,000,000 calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.databases import Database
from tests.support.lengths import SOAK_SECONDS
from tests.support.proxy import Proxy, socket_path
from tests.support.waiting import until
from token_tracking import UsageTracker

CALLS = 1_000_000 if SOAK_SECONDS else 60_000
STALL_SECONDS = 0.005

# A service that runs through an outage in its own process, so that its memory can be measured.
OUTAGE = """
import asyncio, json, sys, time
from token_tracking import UsageTracker

async def main(spool, calls):
    took = []
    tracker = UsageTracker(dsn="host=/nonexistent", spool_dir=spool)
    async with tracker:
        left = iter(range(calls))
        async def work():
            for number in left:
                before = time.perf_counter()
                assert await tracker.track_token_usage(
                    f"tenant-{number % 100}", 7, "gpt-4o", metadata={"operation_id": f"op-{number}"}
                ) is True
                if number % 100 == 0:
                    took.append(time.perf_counter() - before)
        await asyncio.gather(*(work() for _ in range(50)))
    stats = tracker.stats()
    # Not ru_maxrss, which knows of the process that started this one, too.
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    took.sort()
    median = took[len(took) // 2]
    print(json.dumps({"spooled": stats.spooled, "peak_kib": peak, "median": median,
                      "worst": took[-1]}))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.timeout(1200)
def test_calls_of_an_outage_are_spooled_and_come_in_once(
    database: Database, tmp_path: Path, record_property
):
    spool = tmp_path / "spool"
    done = subprocess.run(
        [sys.executable, "-c", OUTAGE, str(spool), str(CALLS)],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = json.loads(done.stdout)
    assert found["spooled"] == CALLS
    assert found["peak_kib"] < 64 * 1024
    with UsageTracker(dsn=database.url, spool_dir=spool) as tracker:
        until(lambda: not list(spool.glob("*.sqlite")), 500, "the spool is empty")
        assert tracker.stats().flushed == {"recorded": CALLS}
    count = (
        "select count(*)::int, count(distinct metadata)::int from token_tracking_raw.usage_events"
    )
    assert database.rows(count) == [(CALLS, CALLS)]
    record_property("KiB at most in an outage", found["peak_kib"])
    sys.stdout.write(f"{CALLS} calls: {found}\n")


def bare_commit(folder: Path) -> float:
    """Return the duration of a durable SQLite commit on this disk, in seconds."""
    with closing(sqlite3.connect(folder / "bare.sqlite", isolation_level=None)) as bare:
        bare.execute("pragma journal_mode = wal")
        bare.execute("pragma synchronous = full")
        bare.execute("create table kept (body text)")
        took: list[float] = []
        for _ in range(100):
            before = time.perf_counter()
            bare.execute("insert into kept values (?)", ("x" * 300,))
            took.append(time.perf_counter() - before)
    return statistics.median(took)


@pytest.mark.timed
def test_an_outage_costs_a_call_less_than_five_milliseconds(database: Database, tmp_path: Path):
    """On a disk that commits within a millisecond; on a slower one as much more as it takes."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))

    async def main(tracker: UsageTracker) -> list[float]:
        took: list[float] = []
        proxy.silent = True
        for _ in range(200):
            before = time.perf_counter()
            assert await tracker.track_token_usage("a", 1) is True
            took.append(time.perf_counter() - before)
        return took

    with UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=1) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        took = asyncio.run(main(tracker))
        median, disk = statistics.median(took), bare_commit(tmp_path)
        sys.stdout.write(f"a call {median * 1000:.1f} ms, a commit {disk * 1000:.1f} ms\n")
        assert median < 0.005 + max(0, disk - 0.001)
        assert max(took) < 1
        proxy.silent = False
        proxy.cut()
        until(lambda: sum(tracker.stats().flushed.values()) == 200)
    proxy.close()


SERVICE = """
import asyncio, json, sys
from token_tracking import UsageTracker
sys.path.insert(0, sys.argv[2])
from tests.support.heartbeat import Heartbeat

async def main():
    heart = Heartbeat()
    found = {}
    tracker = UsageTracker(dsn=sys.argv[1], max_wait=0.5, spool_dir=sys.argv[3])
    await asyncio.to_thread(tracker.start)
    task = asyncio.ensure_future(heart.beat())
    stop = False
    calls = 0

    async def work(metadata):
        nonlocal calls
        while not stop:
            calls += 1
            assert await tracker.track_token_usage("a", 7, metadata=metadata) is True

    async def phase(name, seconds):
        before = calls
        await asyncio.sleep(seconds)
        found[name] = {**heart.summary(), "calls": calls - before}

    workers = [
        asyncio.ensure_future(work({"n": n} if n < 20 else {"text": "x" * 8000})) for n in range(22)
    ]
    await phase("load", 1.0)
    print("down", flush=True)
    await phase("going down", 0.8)
    await phase("outage", 1.0)
    print("up", flush=True)
    await phase("recovery", 1.0)
    stop = True
    await asyncio.gather(*workers)
    heart.summary()
    many = ({"tenant_id": "b", "tokens": 7, "metadata": {"n": n}} for n in range(4000))
    assert all(await tracker.track_many(many))
    found["track_many"] = {**heart.summary(), "calls": 4000}
    await tracker.aclose()
    await asyncio.sleep(0.01)
    found["shutdown"] = {**heart.summary(), "calls": 0}
    task.cancel()
    return found

print(json.dumps(asyncio.run(main())))
"""


def measured(database: Database, spool: Path) -> dict[str, dict[str, float]]:
    """Run the service through an outage; return its heartbeat's measurements of each phase."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SERVICE,
            proxy.dsn(database.env["PGDATABASE"]),
            str(ROOT),
            str(spool),
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, dict[str, float]] = {}
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if line == "down\n":
                proxy.silent = True
            elif line == "up\n":
                proxy.silent = False
                proxy.cut()
            else:
                found = json.loads(line)
    assert child.wait(10) == 0
    proxy.close()
    for phase, values in found.items():
        text = ", ".join(
            f"{name} {value * 1000:.1f} ms" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        sys.stdout.write(f"{phase}: {text}\n")
    return found


@pytest.mark.timed
def test_the_loop_never_stalls(database: Database, tmp_path: Path):
    """Through load, outage, recovery and shutdown, thousands of calls a second.

    Of five attempts each phase counts by its best: now and then a virtual processor is taken away,
    or the collector goes through all that is imported. What is ours is there each time.
    """
    best: dict[str, float] = {}
    for _ in range(5):
        found = measured(database, tmp_path / "spool")
        assert found["load"]["calls"] > 500
        best = {
            phase: min(values["ours"], best.get(phase, values["ours"]))
            for phase, values in found.items()
        }
        if max(best.values()) < STALL_SECONDS:
            return
    pytest.fail(f"the loop was held: {best}")


@pytest.mark.timed
def test_importing_is_cheap_and_opens_nothing():
    """Cold, with all that a service takes; by processor time, for others use the machine too."""
    script = """
import os, sys, time
before = set(os.listdir("/proc/self/fd"))
started = time.process_time()
import token_tracking
from token_tracking import track_token_usage, usage_context, UsageTracker
took = time.process_time() - started
import threading
assert threading.active_count() == 1
assert not {"psycopg", "pydantic"} & set(sys.modules)
assert set(os.listdir("/proc/self/fd")) == before
print(took)
"""
    took: list[float] = []
    # A processor that others share can be slow for a while, and so a few attempts.
    while not took or (min(took) >= 0.15 and len(took) < 20):
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        )
        took.append(float(ran.stdout))
    assert min(took) < 0.15, took
    sys.stdout.write(f"import: {min(took) * 1000:.0f} ms\n")


def test_a_subinterpreter_is_told_false_at_once():
    pytest.importorskip("_xxsubinterpreters")  # of Python 3.11 and 3.12
    program = (
        "import _xxsubinterpreters as interpreters, sys\n"
        "code = f'import sys; sys.path[:] = {sys.path}\\n'\n"
        "code += 'from token_tracking import track_token_usage_sync as track\\n'\n"
        "code += 'print(track(\"a\", 1))'\n"
        "one = interpreters.create()\n"
        "interpreters.run_string(one, code)\n"
        "interpreters.destroy(one)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "TOKEN_TRACKING_DSN": "host=/nowhere"},
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "the system has no thread for it" in done.stderr
