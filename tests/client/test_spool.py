"""The local spool in outages, with full disks, ended processes and forks."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from token_tracking import UsageTracker
from token_tracking.client.requests import EventRequest, OwnerRequest, RejectionRequest, VoidRequest
from token_tracking.client.spool.spool import Spool, spool_files
from token_tracking.errors import SpoolError
from token_tracking.target import Target

TOTAL = "select count(*)::int, coalesce(sum(tokens), 0)::int from token_tracking_raw.usage_events"


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class Outage:
    """Makes a database refuse new connections and ends the existing ones; reverts that."""

    def __init__(self, database: Database) -> None:
        self.name = database.env["PGDATABASE"]
        self.server = database.url.replace(f"/{self.name}?", "/postgres?")

    def _run(self, *statements: str) -> None:
        with closing(psycopg.connect(self.server, autocommit=True)) as connection:
            for statement in statements:
                connection.execute(statement)

    def start(self) -> None:
        self._run(
            f"alter database {self.name} allow_connections false",
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{self.name}'",
        )

    def end(self) -> None:
        self._run(f"alter database {self.name} allow_connections true")


def event(number: int) -> EventRequest:
    payload = f'{{"tenant_id": "a", "idempotency_key": "{number}", "tokens": 1}}'
    return EventRequest(("a", str(number)), payload.encode())


def test_requests_come_back_as_they_went_in_oldest_first(folder: Path):
    spool = Spool.create(folder, 2**30)
    requests = [
        event(2),
        RejectionRequest(b'{"tokens": -1}', "tokens: a negative number"),
        VoidRequest.of("a", "k", "why"),
        OwnerRequest.of("agent", None, "2026-01-01T00:00:00+00:00"),
        event(1),
    ]
    spool.append(requests[:2])
    spool.append(requests[2:])
    numbers, found = zip(*spool.oldest(1000, 2**20), strict=True)
    assert [(type(one), one.order, one.payload) for one in found] == [
        (type(one), one.order, one.payload) for one in requests
    ]
    assert found[1].reason == "tokens: a negative number"
    assert [one.order for _, one in spool.oldest(2, 2**20)] == [("a", "2"), ("", "")]
    assert [one.order for _, one in spool.oldest(9, 2**20, numbers[3])] == [("a", "1")]
    assert len(spool.oldest(1000, 1)) == 1
    spool.forget(numbers)
    assert spool.is_empty()
    spool.close()
    assert list(folder.iterdir()) == []


def test_a_file_is_adopted_only_when_its_process_has_ended(folder: Path):
    mine = Spool.create(folder, 2**30)
    mine.append([event(1)])
    assert list(Spool.adopt(folder)) == []
    assert [(file.requests, file.owned) for file in spool_files(folder)] == [(1, True)]
    mine.close()
    assert [(file.requests, file.owned) for file in spool_files(folder)] == [(1, False)]
    [adopted] = list(Spool.adopt(folder))
    assert list(Spool.adopt(folder)) == []
    [(number, found)] = adopted.oldest(10, 2**20)
    assert found.order == ("a", "1")
    adopted.forget([number])
    adopted.close()
    assert list(folder.iterdir()) == []


def test_a_full_spool_says_so_and_keeps_what_it_has(folder: Path):
    spool = Spool.create(folder, 2**16)
    spool.append([event(1)])
    with pytest.raises(SpoolError, match="full"):
        spool.append([event(number) for number in range(5000)])
    assert len(spool.oldest(10_000, 2**30)) == 1
    spool.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a separate disk of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_on_a_full_disk_nothing_acknowledged_is_lost(
    database: Database, small_disk: Path, caplog: pytest.LogCaptureFixture
):
    """The other calls return False; with a database, all is sent while the disk is still full."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    proxy.refusing = True
    dsn = proxy.dsn(database.env["PGDATABASE"])
    told: dict[str, bool] = {}
    with UsageTracker(dsn=dsn, max_wait=1, spool_dir=small_disk / "spool") as tracker:

        def call() -> None:
            key = f"{len(told)}"
            told[key] = tracker.track_token_usage_sync("a", 1, "x" * 200, idempotency_key=key)

        while all(told.values()) and len(told) < 10_000:
            call()
        assert "disk is full" in caplog.text
        (small_disk / "somebody's").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        assert os.statvfs(small_disk).f_bavail == 0
        for _ in range(5):
            call()
        acknowledged = {key for key, answer in told.items() if answer}
        assert len(acknowledged) > 50
        assert tracker.stats().spooled == len(acknowledged)
        assert tracker.stats().refused == len(told) - len(acknowledged)
        proxy.refusing = False
        until(lambda: sum(tracker.stats().flushed.values()) >= len(acknowledged))
        call()
    # Its rows could not be removed one by one, since that needs space, too.
    assert spool_files(small_disk) == []
    proxy.close()
    acknowledged = {key for key, answer in told.items() if answer}
    rows = database.rows("select idempotency_key from token_tracking_raw.usage_events")
    assert acknowledged <= {key for (key,) in rows}


@pytest.mark.timed
def test_through_an_outage_nothing_is_lost_and_calls_are_fast(database: Database, folder: Path):
    outage = Outage(database)
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
        outage.start()
        assert tracker.track_token_usage_sync("a", 1) is True  # detects it, within the bounded wait
        took: list[float] = []
        for _ in range(100):
            started = time.perf_counter()
            assert tracker.track_token_usage_sync("a", 1) is True
            took.append(time.perf_counter() - started)
        assert sorted(took)[50] < 0.05
        assert max(took) < 2
        assert tracker.void_usage_sync("a", "k", "during the outage") is True
        assert tracker.track_token_usage_sync("a", -1) is False
        assert tracker.stats().spooled >= 101
        outage.end()
        until(lambda: database.value("select count(*) from token_tracking_raw.usage_events") == 102)
        until(lambda: tracker.track_token_usage_sync("a", 1) and tracker.stats().recorded > 1)
    voids = "select idempotency_key from token_tracking_raw.usage_voids"
    assert database.rows(voids) == [("k",)]
    flushed = tracker.stats().flushed
    assert flushed == {"recorded": tracker.stats().spooled, "rejected": 1}
    reasons = "select reason from token_tracking_raw.usage_event_rejections"
    assert "tokens: a negative number" in str(database.value(reasons))
    assert spool_files(folder) == []


def test_a_later_process_brings_in_what_an_ended_one_left(database: Database, folder: Path):
    script = """
import os, signal
from token_tracking import UsageTracker
tracker = UsageTracker(dsn="host=/nonexistent", max_wait=20).start()
assert tracker.track_token_usage_sync("a", 7, idempotency_key="left") is True
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "TOKEN_TRACKING_SPOOL_DIR": str(folder)},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    assert [(file.requests, file.owned) for file in spool_files(folder)] == [(1, False)]
    with UsageTracker(dsn=database.url) as tracker:
        until(lambda: database.rows(TOTAL) == [(1, 7)])
        until(lambda: spool_files(folder) == [])
        assert tracker.stats().flushed == {"recorded": 1}


def test_a_file_whose_process_ends_later_is_adopted_as_well(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in a rolling restart: the new worker is up before the old one ends."""
    monkeypatch.setattr("token_tracking.client.recovery._LOOK_SECONDS", 0.1, raising=False)
    old = Spool.create(folder, 2**30)
    old.append([event(1), event(2)])
    with UsageTracker(dsn=database.url, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("b", 7) is True
        time.sleep(0.3)
        old.close()
        until(lambda: database.rows(TOTAL) == [(3, 9)], 5)
        until(lambda: spool_files(folder) == [], 5)


def test_what_is_too_early_holds_nothing_back(database: Database, folder: Path):
    """An early event waits in front of a thousand others."""
    far = EventRequest(("early", "1"), b'{"tokens":1,"occurred_at":"2099-01-01T00:00:00Z"}')
    spool = Spool.create(folder, 2**30)
    spool.append([far] * 300)
    spool.append([event(number) for number in range(1000)])
    spool.append([far])
    spool.close()
    with UsageTracker(dsn=database.url, spool_dir=folder) as tracker:
        assert tracker.track_token_usage_sync("b", 7) is True
        until(lambda: database.rows(TOTAL) == [(1001, 1007)], 5)
    assert [(file.requests, file.owned) for file in spool_files(folder)] == [(301, False)]


def test_what_waits_for_one_database_does_not_end_in_another(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each database has its own default folder, however the same target is given."""
    monkeypatch.delenv("TOKEN_TRACKING_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for dsn in ("host=/nonexistent dbname=a", "postgresql://u:p@/a?host=/nonexistent"):
        with UsageTracker(dsn=dsn, max_wait=0.5) as tracker:
            assert tracker.track_token_usage_sync("a", 1) is True
    base = tmp_path / "token-tracking" / "spool"
    assert [(file.requests, file.owned) for file in spool_files(base)] == [(1, False)] * 2
    assert len({file.path.parent for file in spool_files(base)}) == 1
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("b", 5) is True
        time.sleep(0.5)
    assert database.rows(TOTAL) == [(1, 5)]
    assert len(spool_files(base)) == 2


SERVICES = """
[svc_a]
host=/nonexistent
dbname=a
[svc_b]
host={PGHOST}
port={PGPORT}
user={PGUSER}
dbname={PGDATABASE}
"""


def test_what_waits_for_one_service_does_not_end_in_another(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The string overrides PGSERVICE; a service counts as the database that it leads to."""
    services = tmp_path / "services"
    services.write_text(SERVICES.format(**database.env))
    monkeypatch.delenv("TOKEN_TRACKING_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", "svc_a")
    with UsageTracker(dsn="service=svc_a", max_wait=0.5) as tracker:
        assert tracker.track_token_usage_sync("a", 1) is True
    with UsageTracker(dsn="service=svc_b") as tracker:
        assert tracker.track_token_usage_sync("b", 5) is True
        time.sleep(0.5)
    assert database.rows(TOTAL) == [(1, 5)]
    [waiting] = spool_files(tmp_path / "token-tracking" / "spool")
    assert waiting.path.parent.name == Target.of("host=/nonexistent dbname=a").folder_name
    assert Target.of("") == Target.of("service=svc_a")
    assert Target.of("service=svc_b") == Target.of(database.url.replace("@/", ":secret@/"))
    assert len({Target.of(f"service={name}").folder_name for name in ("svc_b", "x", "y")}) == 3
    assert str(Target.of("service=x")) == "the database of service x"


def test_a_forked_child_has_a_tracker_of_its_own(database: Database, folder: Path):
    """The child's work and exit harm neither the parent's connection nor its spool."""
    with UsageTracker(dsn=database.url) as tracker:
        assert tracker.track_token_usage_sync("parent", 1) is True
        backends = (
            "select pid from pg_stat_activity"
            " where application_name = 'token-tracking' and datname = current_database()"
        )
        before = database.rows(backends)
        child = os.fork()
        if child == 0:
            try:
                told = tracker.track_token_usage_sync("child", 2)
                told = asyncio.run(tracker.track_token_usage("child", 2)) and told
                tracker.close()
                os._exit(0 if told and tracker.stats().recorded == 2 else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert tracker.track_token_usage_sync("parent", 1) is True
        until(lambda: database.rows(backends) == before)
        assert tracker.stats().recorded == 2
    assert database.rows(TOTAL) == [(4, 6)]


def test_a_fork_during_an_outage_leaves_the_parent_its_spool(database: Database, folder: Path):
    outage = Outage(database)
    outage.start()
    with UsageTracker(dsn=database.url, max_wait=0.5) as tracker:
        assert tracker.track_token_usage_sync("parent", 1) is True
        child = os.fork()
        if child == 0:
            try:
                told = tracker.track_token_usage_sync("child", 2)
                os._exit(0 if told else 1)  # without closing: its file is an orphan
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        files = spool_files(folder)
        assert sorted((file.requests, file.owned) for file in files) == [(1, False), (1, True)]
        assert tracker.track_token_usage_sync("parent", 1) is True
        outage.end()
        until(lambda: database.rows(TOTAL) == [(3, 4)])


def calls_of(received: list[dict[str, object]], answer: object):
    def old_implementation(**arguments: object) -> object:
        received.append(arguments)
        return answer

    return old_implementation


@pytest.mark.parametrize("answer", [True, False])
def test_the_fallback_takes_what_nothing_else_can(answer: bool):
    received: list[dict[str, object]] = []
    with UsageTracker(
        dsn="host=/nonexistent",
        max_wait=0.5,
        spool_dir="/proc/nowhere",
        fallback=calls_of(received, answer),
    ) as tracker:
        call = tracker.track_token_usage_sync
        assert call("a", 7, "m", operation="chat", metadata={"x": 1}) is answer
        assert call("a", input_tokens=2, output_tokens=3, idempotency_key="k") is answer
        assert call("a", -1) is False
        stats = tracker.stats()
    assert (stats.fallback, stats.refused) == (2, 1)
    key = received[0].pop("idempotency_key")
    assert key
    assert received[0] == {
        "tenant_id": "a",
        "tokens": 7,
        "model": "m",
        "agent_id": None,
        "conversation_id": None,
        "collection_id": None,
        "token_type": "llm",
        "operation": "chat",
        "metadata": {"x": 1},
    }
    assert (received[1]["tokens"], received[1]["idempotency_key"]) == (5, "k")


@pytest.mark.timed
def test_an_async_fallback_and_one_that_raises_or_hangs():
    async def slow(**_: object) -> bool:
        await asyncio.sleep(0.01)
        return True

    def fails(**_: object) -> bool:
        raise ValueError

    async def hangs(**_: object) -> bool:
        await asyncio.sleep(5)
        return True

    for function, expected in ((slow, True), (fails, False), (hangs, False)):
        tracker = UsageTracker(
            dsn="host=/nonexistent", max_wait=0.5, spool_dir="/proc/nowhere", fallback=function
        ).start()
        started = time.monotonic()
        assert asyncio.run(tracker.track_token_usage("a", 1)) is expected
        assert time.monotonic() - started < 1.5
        assert tracker.stats().fallback == 1
        tracker.close(0.1)


def test_a_spool_of_a_future_sqlite_is_left_alone_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    folder.mkdir()
    (folder / "broken.sqlite").write_bytes(b"this is no database" * 100)
    assert list(Spool.adopt(folder)) == []
    assert "broken.sqlite cannot be read" in caplog.text
    assert (folder / "broken.sqlite").exists()
    assert [(file.requests, file.owned) for file in spool_files(folder)] == [(None, False)]
