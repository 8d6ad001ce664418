"""The end of a process loses nothing, whatever order its handlers run in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.waiting import until
from token_tracking import UsageTracker

CALLS = "select conversation_id from token_tracking_raw.usage_events order by 1"

NO_THREADS = """
import threading
def none(self):
    raise RuntimeError("can't create new thread at interpreter shutdown")
threading.Thread.start = none
"""
# A destructor that Python calls after all exit handlers, when nothing can be imported any more.
DESTRUCTOR = """
import builtins, sys
class Last:
    def __del__(self):
        assert sys.is_finalizing()
        say(token_tracking.track_token_usage_sync("a", 7, conversation_id="last"))
def say(told, out=sys.stdout.fileno()):
    os.write(out, f"{told}\\n".encode())
builtins.last = Last()
"""
FIRST = "assert token_tracking.track_token_usage_sync('a', 7, conversation_id='first') is True\n"
HANDLER = """
import atexit, time
@atexit.register
def last():
    global started
    started = time.monotonic()
    for n in range(3):
        print(token_tracking.track_token_usage_sync("a", 7, conversation_id=f"last {n}"))
    import asyncio
    print(asyncio.run(token_tracking.track_token_usage("a", 7, conversation_id="last 3")))
    assert time.monotonic() - started < 10
"""
LAST = [f"last {n}" for n in range(4)]

# Each script with its output and what it records.
SCRIPTS: dict[str, tuple[str, list[str], list[str]]] = {
    "a handler that is called after ours": (HANDLER + FIRST, ["True"] * 4, ["first", *LAST]),
    "the first call of all, in a handler": (HANDLER, ["True"] * 4, LAST),
    "the same, where no thread starts": (
        HANDLER + "atexit.register(lambda: exec(NO_THREADS))\n",
        ["True"] * 4,
        LAST,
    ),
    "after ours, where no thread starts": (
        HANDLER + FIRST + "atexit.register(lambda: exec(NO_THREADS))\n",
        ["True"] * 4,
        ["first", *LAST],
    ),
    "a destructor, after calls": (DESTRUCTOR + FIRST, ["True"], ["first", "last"]),
    "a destructor, before any call": (
        DESTRUCTOR + "token_tracking.track_token_usage_sync\n",
        ["True"],
        ["last"],
    ),
    "a destructor, when nothing was imported": (DESTRUCTOR, ["False"], []),
    "a child of multiprocessing": (
        """
import multiprocessing
from multiprocessing.util import Finalize
def last():
    print(token_tracking.track_token_usage_sync("a", 7, conversation_id="last"))
def work():
    assert token_tracking.track_token_usage_sync("a", 7, conversation_id="first") is True
    Finalize(None, last, exitpriority=1)
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(20)
assert child.exitcode == 0
""",
        ["True"],
        ["first", "last"],
    ),
}


@pytest.mark.parametrize("server_is", ["up", "down"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_call_at_the_end(emptied: Database, tmp_path: Path, name: str, server_is: str):
    script, printed, recorded = SCRIPTS[name]
    spool = tmp_path / "spool"
    head = f"import os, sys\nimport token_tracking\nNO_THREADS = {NO_THREADS!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "TOKEN_TRACKING_DSN": "host=/nonexistent" if server_is == "down" else emptied.url,
            "TOKEN_TRACKING_SPOOL_DIR": str(spool),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == printed, done.stderr
    assert ("the interpreter has shut down" in done.stderr) == (printed == ["False"])
    with UsageTracker(dsn=emptied.url, spool_dir=spool):
        until(lambda: [name for (name,) in emptied.rows(CALLS)] == recorded, 10, "all are in")
        until(lambda: not list(spool.glob("*.sqlite")), what="the spool is empty")


def test_a_tracker_that_its_owner_closed_stays_closed(
    emptied: Database, caplog: pytest.LogCaptureFixture
):
    """The owner closed the tracker, unlike at exit: a later call is a mistake and is reported."""
    with UsageTracker(dsn=emptied.url) as tracker:
        assert tracker.track_token_usage_sync("a", 7) is True
    assert tracker.track_token_usage_sync("a", 7) is False
    assert tracker._writer.end(1) is True
    assert tracker.track_token_usage_sync("a", 7) is False
    assert "the tracker is closed" in caplog.text


def test_at_the_end_neither_database_nor_disk_is_told(caplog: pytest.LogCaptureFixture):
    tracker = UsageTracker(dsn="host=/nonexistent", spool_dir="/proc/nowhere", max_wait=1)
    tracker._writer.end(1)
    for _ in range(2):
        assert tracker.track_token_usage_sync("a", 7) is False
    assert "the process ends, and it cannot be written: the spool folder" in caplog.text
    assert tracker.stats().refused == 2
