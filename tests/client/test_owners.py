"""An owner that is sent again never undoes a later correction."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.proxy import Proxy, socket_path
from tests.support.waiting import until
from token_tracking import UsageTracker
from token_tracking.client.connection import Connection
from token_tracking.client.requests import OwnerRequest

START = datetime(2026, 1, 1, tzinfo=UTC)
REVISIONS = "select revision, owner_tenant_id from token_tracking_raw.agent_owners order by 1"
ONCE = "select token_tracking_raw.record_agent_owner_once('bot', %s, '2026-01-01Z', %s)"


@pytest.mark.parametrize("known", [[], ["A"]], ids=["a new owner", "the owner that is known"])
def test_a_lost_answer_brings_no_owner_back(emptied: Database, tmp_path: Path, known: list[str]):
    """The owner is committed, its answer lost, and spooled; corrected by another; then resent."""
    proxy = Proxy(socket_path(emptied.env["PGHOST"]))
    dsn = proxy.dsn(emptied.env["PGDATABASE"])
    with (
        UsageTracker(dsn=emptied.url, spool_dir=tmp_path / "other") as other,
        UsageTracker(dsn=dsn, max_wait=1) as tracker,
    ):
        for owner in known:
            assert other.record_agent_owner_sync("bot", owner, START) is True
        assert tracker.track_token_usage_sync("a", 1) is True
        proxy.on_drop = lambda: setattr(proxy, "refusing", True)
        proxy.drop_answers = 1
        assert tracker.record_agent_owner_sync("bot", "A", START) is True
        assert (proxy.dropped, tracker.stats().spooled) == (1, 1)
        assert emptied.rows(REVISIONS) == [(1, "A")]
        assert other.record_agent_owner_sync("bot", "B", START) is True
        proxy.refusing = False
        until(lambda: tracker.stats().flushed == {"recorded": 1}, what="the spool is empty")
    assert emptied.rows(REVISIONS) == [(1, "A"), (2, "B")]
    proxy.close()


def test_a_call_is_known_by_its_id(each_emptied: Database):
    first, second = uuid4(), uuid4()
    assert each_emptied.value(ONCE, ("A", first)) is True
    assert each_emptied.value(ONCE, ("B", second)) is True
    for call in (first, second, first):
        assert each_emptied.value(ONCE, ("A", call)) is True
    assert each_emptied.rows(REVISIONS) == [(1, "A"), (2, "B")]
    # Another call is another correction, and so is one without id.
    assert each_emptied.value(ONCE, ("A", uuid4())) is True
    call = "select token_tracking_raw.record_agent_owner('bot', 'B', '2026-01-01Z')"
    assert each_emptied.value(call) is True
    assert each_emptied.rows(REVISIONS)[2:] == [(3, "A"), (4, "B")]


def test_a_call_that_was_rolled_back_is_not_known(emptied: Database):
    call = uuid4()
    with closing(psycopg.connect(emptied.url)) as connection:
        connection.execute(ONCE, ("A", call))
        connection.rollback()
    assert emptied.value(ONCE, ("A", call)) is True
    assert emptied.rows(REVISIONS) == [(1, "A")]


def test_an_owner_that_is_refused_is_kept_once_by_its_id(each_emptied: Database):
    call = uuid4()
    for _ in range(2):
        assert each_emptied.value(ONCE, ("", call)) is False
    kept = "select payload ->> 'call_id' from token_tracking_raw.usage_event_rejections"
    assert each_emptied.rows(kept) == [(str(call),)]


def test_the_id_is_fixed_at_the_call(emptied: Database):
    request = OwnerRequest.of("bot", "A", START.isoformat())
    later = OwnerRequest.of("bot", "B", START.isoformat())
    with closing(Connection.open(emptied.url)) as connection:
        for one in (request, later, request):
            one.send(connection)
    assert emptied.rows(REVISIONS) == [(1, "A"), (2, "B")]
    calls = emptied.rows("select call_id from token_tracking_raw.agent_owner_calls")
    assert sorted(UUID(str(call)).version or 0 for (call,) in calls) == [7, 7]


def test_32_writers_of_one_instant_get_a_revision_each(each_emptied: Database):
    """Half of the calls are sent twice: no revision is skipped or used by two of them."""
    ready = threading.Barrier(32)
    told: list[object] = []
    errors: list[Exception] = []
    calls = [uuid4() for _ in range(16)]

    def work(number: int) -> None:
        try:
            with closing(each_emptied.connect()) as connection:
                ready.wait()
                for call in (calls[number % 16], None):
                    row = connection.execute(ONCE, (f"tenant-{number % 16}", call)).fetchone()
                    told.append(row)
        except psycopg.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert told == [(True,)] * 64
    found = each_emptied.rows(REVISIONS)
    assert [revision for revision, _ in found] == list(range(1, len(found) + 1))
    owners = [owner for _, owner in found]
    assert set(owners) == {f"tenant-{number}" for number in range(16)}
    # Each revision changes the owner: none repeats the one before it.
    assert all(one != other for one, other in pairwise(owners))


def test_no_login_can_hold_an_owner_up(each_emptied: Database):
    """A tenant's reader holds any advisory lock."""
    with closing(psycopg.connect(each_emptied.url)) as reader, closing(each_emptied.connect()) as w:
        reader.execute("select pg_advisory_lock(hashtextextended('bot', 0))")
        w.execute("set lock_timeout = '2s'")
        assert w.execute(ONCE, ("A", uuid4())).fetchone() == (True,)
        locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = %s"
        with w.transaction():
            w.execute(ONCE, ("B", uuid4()))
            assert w.execute(locks, (w.info.backend_pid,)).fetchone() == (0,)
    assert each_emptied.rows(REVISIONS) == [(1, "A"), (2, "B")]


@pytest.mark.parametrize("commits", [True, False])
def test_a_writer_waits_for_a_row_of_its_instant_alone(each_emptied: Database, commits: bool):
    done: list[object] = []
    with closing(psycopg.connect(each_emptied.url)) as holder:
        holder.execute(ONCE, ("A", uuid4()))
        other = ONCE.replace("2026-01-01Z", "2026-01-02Z")
        with closing(each_emptied.connect()) as writer:
            writer.execute("set lock_timeout = '2s'")
            assert writer.execute(other, ("C", uuid4())).fetchone() == (True,)
        waiter = threading.Thread(
            target=lambda: done.append(each_emptied.value(ONCE, ("B", uuid4())))
        )
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        holder.commit() if commits else holder.rollback()
        waiter.join(10)
    assert done == [True]
    found = [row for row in each_emptied.rows(REVISIONS) if row[1] != "C"]
    assert found == ([(1, "A"), (2, "B")] if commits else [(1, "B")])


def test_an_owner_beyond_the_snapshot_is_an_error(each_emptied: Database):
    """A serialization failure, after which the transaction can be retried."""
    with closing(psycopg.connect(each_emptied.url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from token_tracking_raw.agent_owners")
        assert each_emptied.value(ONCE, ("A", uuid4())) is True
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute(ONCE, ("B", uuid4()))
        connection.rollback()
        assert connection.execute(ONCE, ("B", uuid4())).fetchone() == (True,)
        connection.commit()
    assert each_emptied.rows(REVISIONS) == [(1, "A"), (2, "B")]
