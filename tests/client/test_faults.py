"""The guarantees of a tracker while servers, connections, disks and processes fail.

After each schedule, all acknowledged events are recorded, none is recorded twice, and the
statistics add up to the calls made. `SEED=n` replays; `make soak` runs schedules for SOAK_SECONDS.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.arena import DAMAGES, TAKINGS, Arena, lasting_database, run_schedule
from tests.support.clock import Clock
from tests.support.databases import NOT_DURABLE, Database, debian_15, started_server
from tests.support.lengths import SEED, SOAK_SECONDS
from tests.support.waiting import ended, until
from token_tracking import UsageTracker
from token_tracking.embedded.server import Server

SCHEDULES = [SEED] if SEED else [101, 102, 103]
EVENTS = "select count(*)::int from token_tracking_raw.usage_events"


@pytest.fixture(scope="module")
def breakable_server(clock: Clock) -> Iterator[Server]:
    """A server that these tests may kill, and whose clock they may set."""
    settings = {**NOT_DURABLE, "shared_preload_libraries": ""}
    yield from started_server(clock.programs(debian_15()), settings)


@pytest.fixture
def arena(breakable_server: Server, clock: Clock, tmp_path: Path) -> Iterator[Arena]:
    if not breakable_server.is_running():
        breakable_server.start()
    arena = Arena(breakable_server, lasting_database(breakable_server), tmp_path, clock)
    try:
        yield arena
    finally:
        arena.close()


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Count a schedule and its acknowledged calls, for the summary at the end of the run."""

    def count(acknowledged: int, schedules: int = 1) -> None:
        record_property("fault schedules", schedules)
        record_property("acknowledged events", acknowledged)

    return count


def run(database: Database, statement: str) -> None:
    with closing(database.connect()) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_whatever_breaks_in_whatever_order(arena: Arena, tally, seed: int):
    print(f"SEED={seed}")  # noqa: T201
    acknowledged = run_schedule(arena, seed, steps=8)
    assert acknowledged > 100
    tally(acknowledged)


@pytest.mark.skipif(not SOAK_SECONDS, reason="make soak")
@pytest.mark.timeout(SOAK_SECONDS + 600)
def test_schedules_for_as_long_as_asked(
    breakable_server: Server, clock: Clock, tally, tmp_path: Path
):
    started, schedules, total = time.monotonic(), 0, 0
    first = SEED or int(time.time())
    while time.monotonic() - started < SOAK_SECONDS:
        seed = first + schedules
        folder = tmp_path / str(seed)
        folder.mkdir()
        if not breakable_server.is_running():
            breakable_server.start()
        arena = Arena(breakable_server, lasting_database(breakable_server), folder, clock)
        try:
            total += run_schedule(arena, seed, steps=20)
        except BaseException:
            print(f"failed with SEED={seed}", flush=True)  # noqa: T201
            raise
        finally:
            arena.close()
        schedules += 1
        print(f"seed {seed}: {total} acknowledged in {schedules} schedules", flush=True)  # noqa: T201
    tally(total, schedules)


def test_spool_files_taken_from_their_owner_lose_nothing(arena: Arena, tally):
    """In each of the ways, one after the other; then the owner is killed."""
    arena.start_client("owner")
    arena.wait_for("owner")
    arena.proxy.refusing = True
    arena.proxy.cut()
    for taking in TAKINGS:
        arena.take_a_spool_file(["owner"], taking)
    arena.kill_client("owner")
    arena.drain()
    acknowledged = arena.check()
    assert acknowledged > 20
    tally(acknowledged)


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_what_a_damaged_log_lost_is_told(arena: Arena, tally, damage: int):
    """All its other rows are recorded."""
    arena.start_client("victim")
    arena.wait_for("victim")
    arena.proxy.refusing = True
    arena.proxy.cut()
    until(lambda: len(arena.noted("acknowledged")) > 60, what="some calls")
    arena.damage_a_log("victim", DAMAGES[damage])
    arena.drain()
    assert list(arena.spool.glob("*.damaged"))
    acknowledged = arena.check()
    assert acknowledged > 60
    tally(acknowledged)


def test_an_answer_lost_after_its_commit_counts_once(arena: Arena, tally):
    with UsageTracker(dsn=arena.proxy.dsn(arena.name), spool_dir=arena.spool) as tracker:
        told: list[bool] = []
        for round_ in range(6):
            arena.proxy.drop_answers = round_ % 3
            told += tracker.track_many_sync(
                {"tenant_id": "a", "tokens": 7, "conversation_id": f"{round_}-{number}"}
                for number in range(20)
            )
        assert arena.proxy.dropped >= 4
        assert told == [True] * 120
        assert ended(tracker.stats()) == 120
    assert arena.database.value(EVENTS) == 120
    assert arena.check() == 0
    tally(120)


def test_a_client_that_is_killed_again_and_again(arena: Arena, tally):
    for number in range(3):
        arena.start_client(f"k{number}")
        arena.wait_for(f"k{number}")
        time.sleep(0.15 + 0.1 * number)
        wanted = 10 * (number + 1)
        until(lambda most=wanted: len(arena.noted("acknowledged")) > most, what="some calls")
        if number == 1:
            arena.server.kill()
        arena.kill_client(f"k{number}")
        if number == 1:
            arena.restart_server()
    arena.drain()
    acknowledged = arena.check()
    assert acknowledged > 20
    tally(acknowledged)


def test_sigterm_without_handler_loses_nothing_acknowledged(arena: Arena, tally):
    client = arena.start_client("rude", rude=True)
    until(lambda: len(arena.noted("acknowledged")) > 20, what="it is in the middle of its calls")
    arena.killed.add("rude")
    client.send_signal(signal.SIGTERM)
    assert client.wait(10) == -signal.SIGTERM
    arena.drain()
    acknowledged = arena.check()
    assert acknowledged > 20
    tally(acknowledged)


def test_a_server_down_for_a_clients_whole_life(arena: Arena, tally):
    arena.server.kill()
    client = arena.start_client("alone", limit=300)
    assert client.wait(30) == 0
    assert len(list(arena.spool.glob("*.sqlite"))) == 1
    arena.restart_server()
    arena.drain()
    acknowledged = arena.check()
    assert acknowledged > 200
    tally(acknowledged)


@pytest.mark.timed
def test_a_server_that_accepts_and_never_answers(arena: Arena, tally):
    arena.proxy.silent = True
    tracker = UsageTracker(dsn=arena.proxy.dsn(arena.name), max_wait=0.5, spool_dir=arena.spool)
    started = time.monotonic()
    assert tracker.track_token_usage_sync("a", 7, conversation_id="first") is True
    assert time.monotonic() - started < 0.5 + 0.5  # and the imports of a first call
    took: list[float] = []
    for number in range(100):
        started = time.perf_counter()
        assert tracker.track_token_usage_sync("a", 7, conversation_id=f"{number}") is True
        took.append(time.perf_counter() - started)
    assert sorted(took)[50] < 0.005
    assert max(took) < 0.5
    arena.proxy.silent = False
    arena.proxy.cut()
    until(lambda: arena.database.value(EVENTS) == 101, what="all are in")
    until(lambda: tracker.stats().flushed == {"recorded": 101}, what="counted")

    # Also a server that falls silent during use: detected once, within the bounded wait.
    until(lambda: tracker.track_token_usage_sync("a", 7) and tracker.stats().recorded > 0)
    arena.proxy.silent = True
    started = time.monotonic()
    assert tracker.track_token_usage_sync("a", 7, conversation_id="mid") is True
    assert time.monotonic() - started < 0.6
    arena.proxy.silent = False
    arena.proxy.cut()
    tracker.close()
    arena.drain()
    arena.check()
    tally(103)


def test_a_thousand_cancelled_calls_are_all_recorded(arena: Arena, tally):
    async def main(tracker: UsageTracker) -> None:
        calls = [
            asyncio.create_task(tracker.track_token_usage("a", 7, conversation_id=f"{number}"))
            for number in range(1000)
        ]
        await asyncio.sleep(0.005)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    tracker = UsageTracker(dsn=arena.database.url, spool_dir=arena.spool).start()
    asyncio.run(main(tracker))
    tracker.close()
    arena.drain()
    assert arena.database.value(EVENTS) == 1000
    assert ended(tracker.stats()) == 1000
    arena.check()
    tally(1000)


def test_a_full_spool_is_told_and_loses_nothing_acknowledged(arena: Arena, tally):
    """Calls are spooled while there is room, then refused, and recorded again afterwards."""
    arena.server.kill()
    arena.start_client("full", spool_max_bytes=150_000, max_wait=0.3, tasks=40)

    def is_refused() -> bool:
        before = len(arena.noted("acknowledged"))
        time.sleep(0.4)
        return 50 < len(arena.noted("acknowledged")) == before

    until(is_refused, what="there is no room")
    spooled = len(arena.noted("acknowledged"))
    arena.restart_server()
    # More than can have been spooled since the file has room again.
    until(lambda: arena.database.value(EVENTS) > 3 * spooled, 60, what="recorded again")
    arena.end_clients()
    arena.drain()
    acknowledged = arena.check()
    assert acknowledged > 50
    report = (arena.notes / "full.report").read_text()
    assert '"refused": 0' not in report
    assert '"recorded": 0' not in report
    tally(acknowledged)


@pytest.mark.parametrize("seed", [SEED] if SEED else [201])
def test_the_fallback_never_counts_what_is_recorded(arena: Arena, tally, seed: int):
    """Without any spool: commits with lost answers, cuts, silence; each event in one place."""
    arena.spool = Path("/proc/nowhere")
    acknowledged = run_schedule(arena, seed, steps=8, fallback=True)
    assert acknowledged > 100
    tally(acknowledged)


def test_what_may_be_committed_never_reaches_the_fallback(arena: Arena, tally):
    """Even if a later attempt is known to have failed, the first one decides."""
    given: list[dict[str, object]] = []

    def old_implementation(**arguments: object) -> bool:
        given.append(arguments)
        return True

    with UsageTracker(
        dsn=arena.proxy.dsn(arena.name),
        max_wait=1.5,
        spool_dir="/proc/nowhere",
        fallback=old_implementation,
    ) as tracker:
        assert tracker.track_token_usage_sync("a", 7, conversation_id="before") is True
        # The first attempt is committed and its answer lost; the next ones are refused.
        broken = "alter function token_tracking_raw.require_durable_commit() rename to x"
        arena.proxy.on_drop = lambda: run(arena.database, broken)
        arena.proxy.drop_answers = 1
        assert tracker.track_token_usage_sync("a", 7, conversation_id="lost") is False
        assert arena.proxy.dropped == 1
        assert tracker.track_token_usage_sync("a", 7, conversation_id="after") is True
        assert [call["conversation_id"] for call in given] == ["after"]
        run(
            arena.database, "alter function token_tracking_raw.x() rename to require_durable_commit"
        )
        until(lambda: tracker.track_token_usage_sync("a", 7) and tracker.stats().recorded > 1)
        until(
            lambda: sum(tracker.stats().flushed.values()) == 1,
            what="it is sent again",
        )
    rows = arena.database.rows(
        "select conversation_id from token_tracking_raw.usage_events"
        " where conversation_id is not null order by 1"
    )
    assert rows == [("before",), ("lost",)]
    tally(2)


def test_a_later_attempt_says_nothing_about_an_earlier_one(arena: Arena, tally):
    """The first is committed and its answer lost; those after it are surely rolled back."""
    given: list[dict[str, object]] = []

    def old_implementation(**arguments: object) -> bool:
        given.append(arguments)
        return True

    def fail_from_now_on() -> None:
        # The row goes, or the next attempt would find it and have nothing to insert.
        run(
            arena.database,
            """
            create function fails() returns trigger language plpgsql as
            $$ begin raise serialization_failure; end $$;
            delete from token_tracking_raw.usage_events;
            create trigger fails before insert on token_tracking_raw.usage_events
            for each row execute function fails();
            """,
        )

    arena.proxy.on_drop = fail_from_now_on
    with UsageTracker(
        dsn=arena.proxy.dsn(arena.name),
        max_wait=3,
        spool_dir="/proc/nowhere",
        fallback=old_implementation,
    ) as tracker:
        arena.proxy.drop_answers = 1
        assert tracker.track_token_usage_sync("a", 7, conversation_id="lost") is False
        assert arena.proxy.dropped == 1
        # One that was never committed goes to the fallback.
        assert tracker.track_token_usage_sync("a", 7, conversation_id="after") is True
        assert [call["conversation_id"] for call in given] == ["after"]
        run(arena.database, "drop function fails cascade")
        until(lambda: tracker.track_token_usage_sync("a", 7) and tracker.stats().duplicate == 0)
        until(lambda: sum(tracker.stats().flushed.values()) >= 1, what="the lost one is sent")
    assert ended(tracker.stats()) >= 3
    names = "select conversation_id from token_tracking_raw.usage_events where tokens = 7"
    assert ("lost",) in arena.database.rows(names)
    assert ("after",) not in arena.database.rows(names)
    tally(2)
