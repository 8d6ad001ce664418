"""Forks before, during and after first use; the parent goes on unharmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.waiting import until
from token_tracking import UsageTracker

NAMES = "select conversation_id, count(*)::int from token_tracking_raw.usage_events group by 1"

# The beginning of every script here; `wait` fails for a child that hangs.
HEAD = """
import asyncio, os, sys, threading, time
from token_tracking import UsageTracker
DSN, SPOOL, DOWN = sys.argv[1:]

def wait(child, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0, (child, status)
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise SystemExit(f"the child {child} hangs")

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return child
"""

# Children that end as programs do, with exit handlers and destructors of what they inherited.
EXITS = """
from pathlib import Path
from token_tracking.client.spool.spool import spool_files
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
assert tracker.track_token_usage_sync("a", 7, conversation_id="parent") is True

def exits(name):
    child = os.fork()
    if child == 0:
        if name:
            assert tracker.track_token_usage_sync("a", 7, conversation_id=name) is True
        sys.exit(0)
    wait(child)

def what_the_parent_has():
    writer = tracker._writer
    if not int(DOWN):
        return writer._database.info.backend_pid
    [file] = [one for one in spool_files(Path(SPOOL)) if one.path == writer._spool.path]
    assert file.owned
    return file.path

before = what_the_parent_has()
"""

SCRIPTS = {
    "before first use": """
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20)
def work(name):
    assert tracker.track_token_usage_sync("a", 7, conversation_id=name) is True
    tracker.close()
children = [fork(lambda: work(f"child {n}")) for n in range(3)]
work("parent")
for child in children:
    wait(child)
""",
    # The driver is still being imported by a thread that the child does not have.
    "during first use": """
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20)
first = threading.Thread(target=tracker.track_token_usage_sync, args=("a", 7),
                         kwargs={"conversation_id": "parent"})
first.start()
children = []
for n in range(12):
    def work(name=f"child {n}"):
        assert tracker.track_token_usage_sync("a", 7, conversation_id=name) is True
        tracker.close()
    children.append(fork(work))
    time.sleep(0.01)
for child in children:
    wait(child)
first.join()
tracker.close()
""",
    "while the parent is busy": """
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
done = threading.Event()
made = [0, 0]
def busy(place):
    while not done.is_set():
        made[place] += 1
        assert tracker.track_token_usage_sync("a", 7, conversation_id=f"{place}-{made[place]}")
threads = [threading.Thread(target=busy, args=(place,)) for place in range(2)]
for thread in threads:
    thread.start()
for n in range(12):
    def work(name=f"child {n}"):
        assert tracker.stats().waiting == 0 and tracker.stats().recorded == 0
        assert tracker.track_token_usage_sync("a", 7, conversation_id=name) is True
        assert asyncio.run(tracker.track_token_usage("a", 7, conversation_id=name + " too")) is True
        if n % 2:
            tracker.close()
            assert tracker.stats().recorded + tracker.stats().spooled == 2
    wait(fork(work))
    time.sleep(0.02)
done.set()
for thread in threads:
    thread.join()
tracker.close()
stats = tracker.stats()
assert stats.recorded + stats.spooled == sum(made), (stats, made)
if not int(DOWN):
    assert stats.spooled == 0, stats
print(sum(made) + 24)
""",
    "children that exit, of an idle parent": EXITS
    + """
for n in range(5):
    exits("")
    assert what_the_parent_has() == before
    exits(f"child {n}")
    assert tracker.track_token_usage_sync("a", 7, conversation_id=f"parent {n}") is True
    assert what_the_parent_has() == before
tracker.close()
assert tracker.stats().recorded + tracker.stats().spooled == 6
""",
    "children that exit, of a busy parent": EXITS
    + """
done = threading.Event()
made = 0
def busy():
    global made
    while not done.is_set():
        made += 1
        assert tracker.track_token_usage_sync("a", 7, conversation_id=f"parent {made}") is True
thread = threading.Thread(target=busy)
thread.start()
for n in range(5):
    exits("")
    exits(f"child {n}")
done.set()
thread.join()
assert what_the_parent_has() == before
tracker.close()
stats = tracker.stats()
assert stats.recorded + stats.spooled == made + 1, stats
if not int(DOWN):
    assert stats.spooled == 0, stats
print(made + 6)
""",
    # Like a daemon: the child continues after the parent has ended.
    "the parent ends first": """
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
assert tracker.track_token_usage_sync("a", 7, conversation_id="parent") is True
read, write = os.pipe()
middle = os.fork()
if middle == 0:
    def work():
        os.close(write)
        os.read(read, 1)  # until the parent has ended
        assert tracker.track_token_usage_sync("a", 7, conversation_id="daemon") is True
        tracker.close()
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)
    os._exit(0)
os.waitpid(middle, 0)
os._exit(0)
""",
    "a child of multiprocessing that leaves tasks behind": """
import multiprocessing
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
def work():
    async def main():
        for n in range(50):
            asyncio.ensure_future(tracker.track_token_usage("a", 7, conversation_id=f"left {n}"))
        await asyncio.sleep(0)
    asyncio.run(main())
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(30)
assert child.exitcode == 0, child.exitcode
tracker.close()
""",
}
EXPECTED = {
    "before first use": 4,
    "during first use": 13,
    "children that exit, of an idle parent": 11,
    "the parent ends first": 2,
    "a child of multiprocessing that leaves tasks behind": 50,
}


@pytest.mark.parametrize("server_is", ["up", "down"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_fork(database: Database, tmp_path: Path, name: str, server_is: str):
    spool = tmp_path / "spool"
    down = server_is == "down"
    dsn = "host=/nonexistent" if down else database.url
    done = subprocess.run(
        [sys.executable, "-c", HEAD + SCRIPTS[name], dsn, str(spool), str(int(down))],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    expected = EXPECTED.get(name) or int(done.stdout)

    def calls() -> int:
        with UsageTracker(dsn=database.url, spool_dir=spool):
            until(lambda: not list(spool.glob("*.sqlite")), what="the spool is empty")
        rows = database.rows(NAMES)
        assert [name for name, count in rows if count != 1] == []
        return len(rows)

    until(lambda: calls() == expected, 20, f"{expected} events")


def test_a_fork_while_others_log_at_debug(database: Database, tmp_path: Path):
    """A child inherits the lock of a stream to which a thread of its parent is writing."""
    script = (
        HEAD
        + """
import logging
logging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, "w"))
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
done = threading.Event()
def busy():
    while not done.is_set():
        tracker.track_token_usage_sync("a", 0)
        tracker.track_token_usage_sync("a", 7)
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
def work():
    assert tracker.track_token_usage_sync("a", 7, conversation_id="child") is True
for _ in range(40):
    wait(fork(work), 10)
done.set()
for thread in threads:
    thread.join()
"""
    )
    subprocess.run(
        [sys.executable, "-c", script, database.url, str(tmp_path / "spool"), "0"],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )
    assert ("child", 40) in database.rows(NAMES)


def test_a_fork_does_not_wait_for_a_server_that_is_silent(database: Database, tmp_path: Path):
    """Nor for another tracker; and the child, forked in the middle of a connect, connects."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.silent = True
    script = (
        HEAD
        + """
silent = UsageTracker(dsn=DOWN, spool_dir=SPOOL, max_wait=20)
call = threading.Thread(target=silent.track_token_usage_sync, args=("a", 7), daemon=True)
call.start()
time.sleep(0.5)
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL + "2", max_wait=20)
def work():
    assert tracker.track_token_usage_sync("a", 7, conversation_id="child") is True
    assert tracker.stats().recorded == 1
started = time.monotonic()
child = fork(work)
assert time.monotonic() - started < 0.5
wait(child)
assert tracker.track_token_usage_sync("a", 7, conversation_id="parent") is True
assert tracker.stats().recorded == 1
assert time.monotonic() - started < 10
os._exit(0)
"""
    )
    subprocess.run(
        [
            *(sys.executable, "-c", script, database.url, str(tmp_path / "spool")),
            proxy.dsn(database.env["PGDATABASE"]),
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=60,
    )
    proxy.close()
    assert sorted(database.rows(NAMES)) == [("child", 1), ("parent", 1)]


def test_a_child_that_lives_on_leaves_the_spool_to_others(database: Database, tmp_path: Path):
    """The parent has died; a third process sends what the parent left."""
    script = (
        HEAD
        + """
tracker = UsageTracker(dsn="host=/nonexistent", spool_dir=SPOOL, max_wait=20).start()
assert tracker.track_token_usage_sync("a", 7, conversation_id="parent") is True
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
os._exit(0)
"""
    )
    done = subprocess.Popen(
        [sys.executable, "-c", script, "", str(tmp_path / "spool"), "1"],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
    )
    assert done.stdout is not None
    with done.stdout:
        child = int(done.stdout.readline())
    try:
        assert done.wait(10) == 0
        with UsageTracker(dsn=database.url, spool_dir=tmp_path / "spool"):
            until(lambda: len(database.rows(NAMES)) == 1, 5, "adopted")
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_call_ends_in_a_child_made_by_a_signal_handler(database: Database, tmp_path: Path):
    """The child continues the interrupted call; the parent sends the usage."""
    script = """
import signal, psycopg
made = []
tracker = UsageTracker(dsn=DSN, spool_dir=SPOOL, max_wait=20).start()
other = psycopg.connect(DSN)
other.execute("lock table token_tracking_raw.usage_events in access exclusive mode")
signal.signal(signal.SIGALRM, lambda *_: made.append(os.fork()))
threading.Timer(0.6, other.rollback).start()
signal.setitimer(signal.ITIMER_REAL, 0.2)
told = tracker.track_token_usage_sync("a", 7, conversation_id="parent")
if made == [0]:
    assert told is False
    assert tracker.track_token_usage_sync("a", 7, conversation_id="child") is True
    tracker.close()
    os._exit(0)
assert told is True
wait(made[0], 15)
"""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script, database.url, str(tmp_path / "spool"), "0"],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the process was forked while the call waited" in done.stderr
    with UsageTracker(dsn=database.url, spool_dir=tmp_path / "spool"):
        until(lambda: not list((tmp_path / "spool").glob("*.sqlite")), what="the spool is empty")
    assert sorted(database.rows(NAMES)) == [("child", 1), ("parent", 1)]
