"""The client's threads survive errors, and no caller waits for them beyond the bound."""

from __future__ import annotations

import asyncio
import gc
import linecache
import logging
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import token_tracking
from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.spooled import request as event
from tests.support.waiting import ended, until
from token_tracking import NotDurableError, UsageTracker
from token_tracking.client import delivery, forks, writer
from token_tracking.client.spool import spool as spool_module
from token_tracking.client.spool.spool import Spool, spool_files

EVENTS = "select count(*)::int from token_tracking_raw.usage_events"
NOWHERE = "/proc/nowhere"
CUT = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
    " where application_name = 'token-tracking' and datname = current_database()"
)


@pytest.fixture
def database(emptied: Database) -> Database:
    return emptied


def answers_of(tracker: UsageTracker, calls: int = 1, seconds: float = 5, **given: object) -> list:
    """Call from another thread, so that a call that hangs or raises fails only its test."""
    told: list[object] = []

    def call() -> None:
        for _ in range(calls):
            try:
                told.append(
                    tracker.track_token_usage_sync(**{"tenant_id": "a", "tokens": 7, **given})
                )  # type: ignore[arg-type]
            except BaseException as error:
                told.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"hangs after {told}"
    return told


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: BaseException):
    works = getattr(owner, name)

    def fails(*given: object) -> object:
        monkeypatch.setattr(owner, name, works)
        raise error

    monkeypatch.setattr(owner, name, fails)


@pytest.mark.parametrize(
    ("where", "name"),
    [(writer, "_deliver"), (writer.Writer, "_next_batch"), (writer.Writer, "_send")],
)
def test_the_writers_thread_outlives_what_goes_wrong_in_it(
    database: Database, monkeypatch: pytest.MonkeyPatch, where: object, name: str
):
    with UsageTracker(dsn=database.url, max_wait=2) as tracker:
        assert answers_of(tracker) == [True]
        fails_once(monkeypatch, where, name, MemoryError())
        assert len(answers_of(tracker)) == 1
        assert answers_of(tracker, 3) == [True] * 3
        assert ended(tracker.stats()) == 5


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (delivery.Delivery, "log_answers"),
        (delivery.Delivery, "_take"),
        (writer.Writer, "_settle"),
        (writer.Writer, "_settle_committed"),
    ],
)
def test_what_goes_wrong_with_a_batch_harms_no_other_one(
    database: Database, monkeypatch: pytest.MonkeyPatch, where: object, name: str
):
    """The server has the next batch already: all calls are answered, and each counts once."""
    number = 3 * delivery.MAX_BATCH

    async def main(tracker: UsageTracker) -> list[bool]:
        calls = [tracker.track_token_usage("a", 7) for _ in range(number)]
        return await asyncio.wait_for(asyncio.gather(*calls), 10)

    with UsageTracker(dsn=database.url, max_wait=4) as tracker:
        fails_once(monkeypatch, where, name, MemoryError())
        assert asyncio.run(main(tracker)) == [True] * number
        assert ended(tracker.stats()) == number
        until(lambda: database.value(EVENTS) == number, what="all are in")


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no log is shipped")


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_a_log_handler_that_raises_harms_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch, level: int
):
    ours = logging.getLogger("token_tracking")
    monkeypatch.setattr(ours, "level", level)
    ours.manager._clear_cache()  # type: ignore[attr-defined]
    handler = Broken()
    ours.addHandler(handler)
    try:
        with UsageTracker(dsn=database.url, max_wait=2) as tracker:
            assert answers_of(tracker) == [True]
            assert answers_of(tracker, tokens=-1) == [False]
            database.rows(CUT)
            assert answers_of(tracker, 3) == [True] * 3
        assert answers_of(tracker) == [False]
        assert tracker.stats().rejected == 1
    finally:
        ours.removeHandler(handler)
        ours.manager._clear_cache()  # type: ignore[attr-defined]


def test_a_refused_call_in_a_log_handler_is_answered(database: Database):
    """The writer logs the refusal to a handler that waits for the writer."""

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "app":
                told.append(tracker.track_token_usage_sync("a", -1))

    told: list[bool] = []
    handler = Counting()
    logging.getLogger().addHandler(handler)
    try:
        with UsageTracker(dsn=database.url, max_wait=0.5) as tracker:
            started = time.monotonic()
            call = threading.Thread(
                target=logging.getLogger("app").warning, args=("x",), daemon=True
            )
            call.start()
            call.join(8)
            assert not call.is_alive()
            assert time.monotonic() - started < 3
            assert told == [False]
    finally:
        logging.getLogger().removeHandler(handler)


def test_a_signals_handler_calls_in_the_middle_of_a_call(database: Database):
    """The handler waits for its own answer while the interrupted call holds its locks."""
    script = """
import signal, sys
from collections import deque
from token_tracking import UsageTracker

class Interrupted(deque):
    times = 0
    def append(self, entry):
        super().append(entry)
        self.times += 1
        if self.times == 1:
            signal.raise_signal(signal.SIGALRM)

told = []
signal.signal(signal.SIGALRM, lambda *_: told.append(tracker.track_token_usage_sync("handler", 7)))
with UsageTracker(dsn=sys.argv[1], max_wait=20) as tracker:
    tracker._writer._queue = Interrupted()
    assert tracker.track_token_usage_sync("a", 7) is True
assert told == [True]
"""
    subprocess.run(
        [sys.executable, "-c", script, database.url],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=15,
    )
    assert database.value(EVENTS) == 2


def test_a_signals_handler_calls_while_the_first_call_imports(database: Database):
    script = """
import signal
from token_tracking import track_token_usage_sync
told = []
signal.signal(signal.SIGALRM, lambda *_: told.append(track_token_usage_sync("handler", 7)))
signal.setitimer(signal.ITIMER_REAL, 0.05)
assert track_token_usage_sync("a", 7) is True
assert told == [True], told
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "TOKEN_TRACKING_DSN": database.url,
            "TOKEN_TRACKING_MAX_WAIT": "20",
        },
        check=True,
        timeout=30,
    )
    assert database.value(EVENTS) == 2


class Interrupt(BaseException):
    """An exception raised by a signal handler, such as Ctrl-C's."""


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_exception_in_the_first_call_harms_no_later_one(database: Database):
    """A program that catches Ctrl-C, or sets a time limit by a signal, continues metering."""
    folder = str(Path(token_tracking.__file__).parent)
    lines_left = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines_left
        file = frame.f_code.co_filename
        if event == "line" and (file.startswith(folder) or file == threading.__file__):
            # At the end of a block, too, but no signal comes between it and the lock's release.
            if linecache.getline(file, frame.f_lineno).lstrip().startswith("with "):
                return trace
            lines_left -= 1
            if lines_left == 0:
                sys.settrace(None)
                raise Interrupt
        return trace

    harmed: list[object] = []
    for number in range(1, 1000):
        tracker = UsageTracker(dsn=database.url, max_wait=2)  # its first call starts it
        lines_left = number
        where = "after all lines"
        try:
            sys.settrace(trace)
            tracker.track_token_usage_sync("a", 7)
        except Interrupt as interrupt:
            at = traceback.extract_tb(interrupt.__traceback__)[-2]
            where = f"{at.name}:{at.lineno}"
        finally:
            sys.settrace(None)
        if (told := answers_of(tracker)) != [True]:
            harmed.append((where, told))
        tracker.close()
        if lines_left > 0:
            break
    assert number > 100
    assert harmed == []


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch):
    goes_on = threading.Event()
    works = Spool.append

    def hangs(self: Spool, requests: object) -> None:
        goes_on.wait(20)
        works(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(Spool, "append", hangs)
    yield goes_on
    goes_on.set()


def test_an_unanswered_call_is_false_and_still_sent(
    database: Database, hung_disk: threading.Event, caplog: pytest.LogCaptureFixture
):
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.refusing = True
    with UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=0.4) as tracker:

        async def main() -> list[bool]:
            calls = [tracker.track_token_usage("a", 7) for _ in range(20)]
            return await asyncio.wait_for(asyncio.gather(*calls), 5)

        started = time.monotonic()
        assert asyncio.run(main()) == [False] * 20
        assert time.monotonic() - started < 2
        assert "no answer within the bounded wait" in caplog.text
        assert (tracker.stats().refused, tracker.stats().waiting) == (20, 0)
        hung_disk.set()
        proxy.refusing = False
        until(lambda: tracker.stats().flushed == {"recorded": 20}, 10)
        assert answers_of(tracker) == [True]
        assert ended(tracker.stats()) == 21
    proxy.close()
    assert database.value(EVENTS) == 21


def test_what_is_raised_names_its_cause_once(hung_disk: threading.Event):
    down = {"dsn": "host=/nonexistent", "max_wait": 0.3, "on_error": "raise"}
    with UsageTracker(**down) as late, UsageTracker(**down, spool_dir=NOWHERE) as lost:  # type: ignore[arg-type]
        told = [*answers_of(late), *answers_of(lost)]
        hung_disk.set()
    told += answers_of(lost)
    assert {type(one) for one in told} == {NotDurableError}
    assert [str(one) for one in told] == [
        "not known to be durable: no answer within the bounded wait, it is still sent",
        "not known to be durable: the spool folder /proc/nowhere cannot be used: "
        "No such file or directory",
        "not known to be durable: the tracker is closed",
    ]


def test_the_fallback_takes_over_where_the_disk_hangs(hung_disk: threading.Event):
    given: list[object] = []
    with UsageTracker(
        dsn="host=/nonexistent",
        max_wait=0.1,
        fallback=lambda **call: given.append(call["idempotency_key"]) or True,
    ) as tracker:
        assert answers_of(tracker)[0] is False
        time.sleep(0.2)
        assert answers_of(tracker, 5) == [True] * 5
        assert len(set(given)) == len(given) == 5
        assert tracker.stats().fallback == 5
        hung_disk.set()
    assert ended(tracker.stats()) == 6


def test_an_outage_takes_a_burst_in_few_commits(monkeypatch: pytest.MonkeyPatch):
    """So the delays of a slow disk do not add up over the waiting calls."""
    commits: list[int] = []
    works = Spool.append

    def slow(self: Spool, requests: list) -> None:
        time.sleep(0.05)
        commits.append(len(requests))
        works(self, requests)

    monkeypatch.setattr(Spool, "append", slow)

    async def main() -> int:
        return sum(await asyncio.gather(*(tracker.track_token_usage("a", 7) for _ in range(9000))))

    with UsageTracker(dsn="host=/nonexistent", max_wait=20) as tracker:
        assert answers_of(tracker) == [True]
        assert asyncio.run(main()) == 9000
    assert sum(commits) == 9001
    assert len(commits) < 15


@pytest.mark.parametrize("ending", ["cancelled", "exit"])
def test_a_fallback_that_ends_its_task_is_asked_again(ending: str):
    asked: list[object] = []

    async def old_implementation(**call: object) -> bool:
        asked.append(call)
        if len(asked) == 1:
            if ending == "exit":
                raise SystemExit(1)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return True

    with UsageTracker(
        dsn="host=/nonexistent", spool_dir=NOWHERE, max_wait=2, fallback=old_implementation
    ) as tracker:
        assert answers_of(tracker, 3) == [False, True, True]
        assert tracker.stats().fallback == len(asked) == 3


def test_a_fallback_that_hangs_holds_no_caller_beyond_the_end():
    hangs = threading.Event()
    told: list[bool] = []
    tracker = UsageTracker(
        dsn="host=/nonexistent",
        spool_dir=NOWHERE,
        max_wait=5,
        fallback=lambda **_: hangs.wait(20),
    ).start()
    callers = [
        threading.Thread(
            target=lambda: told.append(tracker.track_token_usage_sync("a", 7)), daemon=True
        )
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    until(lambda: tracker.stats().fallback == 1 and tracker.stats().waiting == 2, 4, "it hangs")
    assert tracker._writer.close(0.3) is False
    for caller in callers:
        caller.join(2)
    hangs.set()
    assert told == [False] * 3
    assert (tracker.stats().fallback, tracker.stats().refused) == (1, 2)
    assert tracker._writer.close(5) is True


def test_a_fallback_without_a_loop_is_not_counted_as_called(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    async def old_implementation(**call: object) -> bool:
        asked.append(call)
        return True

    with UsageTracker(
        dsn="host=/nonexistent", spool_dir=NOWHERE, max_wait=2, fallback=old_implementation
    ) as tracker:
        fails_once(monkeypatch, asyncio, "Runner", OSError("too many open files"))
        assert answers_of(tracker, 2) == [False, True]
        assert (tracker.stats().refused, tracker.stats().fallback, len(asked)) == (1, 1, 1)


def test_an_unusable_spool_folder_lets_it_reconnect(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with UsageTracker(dsn=database.url, spool_dir=tmp_path / ("x" * 300), max_wait=2) as tracker:
        assert answers_of(tracker) == [True]
        until(lambda: "spool folder" in caplog.text, 5, "told at the start")
        for _ in range(2):
            assert database.value(CUT) == 1
            assert answers_of(tracker, 2) == [True, True]
        assert tracker.stats().recorded == 5
    assert caplog.text.count("spool folder") < 5


def test_after_each_outage_a_process_has_one_connection(database: Database):
    backends = CUT.replace("pg_terminate_backend(pid)", "pid")
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    with UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=0.5) as tracker:
        recovery = tracker._writer._recovery
        for outage in range(1, 4):
            assert answers_of(tracker) == [True]
            proxy.refusing = True
            proxy.cut()
            assert answers_of(tracker) == [True]
            proxy.refusing = False
            until(lambda number=outage: tracker.stats().flushed == {"recorded": number}, 10)
            assert answers_of(tracker) == [True]
            until(lambda: not recovery._waits and not recovery._wanted)
            until(lambda: database.value(backends) == 1, 5, "one is left")
        # The existing one was not taken, so another one is made.
        proxy.cut()
        for _ in range(2):
            recovery.failed()
            until(lambda: not recovery.is_down, 5)
        until(lambda: database.value(backends) == 1, 5, "one is left")
    proxy.close()


def test_without_threads_the_service_starts(database: Database, monkeypatch: pytest.MonkeyPatch):
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        tracker = UsageTracker(dsn=database.url, fallback=lambda **_: True).start()
        assert tracker.track_token_usage_sync("a", 7) is False
    assert answers_of(tracker) == [True]
    assert (tracker.stats().refused, tracker.stats().recorded) == (1, 1)
    tracker.close()


def test_a_tracker_that_nobody_closes_leaves_nothing_behind(database: Database):
    def work() -> None:
        tracker = UsageTracker(dsn=database.url)
        assert tracker.track_token_usage_sync("a", 7) is True

        async def main() -> None:
            task = asyncio.create_task(tracker.track_token_usage("a", 7))
            await asyncio.sleep(0)
            task.cancel()

        asyncio.run(main())

    before = set(threading.enumerate())
    work()
    gc.collect()
    until(lambda: set(threading.enumerate()) <= before, 10, "its threads end")
    until(lambda: database.value(CUT) == 0, 5, "its connection is closed")
    assert database.value(EVENTS) == 2


def test_closing_twice_in_a_stuck_flush_frees_the_spool(database: Database, tmp_path: Path):
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    folder = tmp_path / "spool"
    tracker = UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=0.6).start()
    assert tracker.track_token_usage_sync("a", 7) is True
    proxy.swallowing = True
    assert tracker.track_token_usage_sync("a", 7) is True
    time.sleep(0.3)
    tracker.close(0.5)
    tracker.close(0.5)
    proxy.swallowing = False
    proxy.cut()
    until(lambda: not any(file.owned for file in spool_files(folder)), 5, "it lets go")
    proxy.close()


class Failing(sqlite3.Connection):
    """The disk fails at the end of the commit, when everything is written."""

    def __exit__(self, *_: object) -> bool:
        self.commit()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


def test_what_a_disk_may_have_never_reaches_the_fallback(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    given: list[object] = []
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.refusing = True
    connect = sqlite3.connect

    def failing(*arguments: object, **options: object) -> sqlite3.Connection:
        return connect(*arguments, factory=Failing, **options)  # type: ignore[call-overload]

    with UsageTracker(
        dsn=proxy.dsn(database.env["PGDATABASE"]),
        max_wait=2,
        fallback=lambda **call: given.append(call) or True,
    ) as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(spool_module.sqlite3, "connect", failing)
            assert answers_of(tracker, idempotency_key="k") == [False]
        assert given == []
        proxy.refusing = False
        until(lambda: database.value(EVENTS) == 1, 10, "it is sent again, or found in the file")
    proxy.close()
    assert database.value(EVENTS) == 1


def test_what_may_be_recorded_is_sent_again_by_itself(database: Database):
    """More than one batch of it: when the server is back, or at the end at the latest."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    with UsageTracker(
        dsn=proxy.dsn(database.env["PGDATABASE"]), spool_dir=NOWHERE, max_wait=0.5
    ) as tracker:
        assert answers_of(tracker) == [True]
        proxy.swallowing = True
        assert answers_of(tracker) == [False]
        proxy.swallowing = False
        proxy.cut()
        until(lambda: database.value(EVENTS) == 2, 5, "sent again")
        assert ended(tracker.stats()) == 2
        tracker._writer._recovery.keep_sending([event(f"{number}") for number in range(600)])
    proxy.close()
    assert tracker.stats().flushed == {"recorded": 601}
    assert database.value(EVENTS) == 602


def test_a_removed_spool_folder_loses_nothing_acknowledged(database: Database, tmp_path: Path):
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.refusing = True
    folder = tmp_path / "spool"
    with UsageTracker(dsn=proxy.dsn(database.env["PGDATABASE"]), max_wait=2) as tracker:
        assert answers_of(tracker, 20) == [True] * 20
        shutil.rmtree(folder)
        assert answers_of(tracker, 2) == [True] * 2
        assert [file.requests for file in spool_files(folder)] == [22]
        proxy.refusing = False
        until(lambda: database.value(EVENTS) == 22, 10)
    proxy.close()


def test_forks_wait_for_a_hung_disk_but_not_for_ever():
    held, done = threading.Event(), threading.Event()

    def hang() -> None:
        with forks.postponed:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hang)
    thread.start()
    held.wait(5)
    started = time.monotonic()
    fork = threading.Thread(target=lambda: (forks._before(), forks._after()), daemon=True)
    fork.start()
    fork.join(5)
    done.set()
    thread.join()
    fork.join()
    assert time.monotonic() - started < 3
