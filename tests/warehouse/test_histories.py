"""Random histories: after every build, every rollup equals an independent count of what it saw.

A history is a list of steps that Hypothesis makes, shrinks and prints. HISTORIES
says how many are played (`make soak`).
"""

from __future__ import annotations

import os
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cost_oracle import Prices, count_costs
from tests.support.databases import fresh_database
from tests.support.directed import until_waiting_for
from tests.support.oracle import OPERATIONS, TOKEN_TYPES, Marts, Raw, Settings, Snapshot, count
from tests.support.price_rows import HOUR, START, Recording, some_rows
from tests.support.project import DbtProject, RunningBuild
from tests.support.warehouse import A_HALF, A_THIRD, ROLLUPS, Event, Warehouse

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from token_tracking.embedded.server import Server

HISTORIES = int(os.environ.get("HISTORIES", "12"))
SHARDS = 4

# Few of each, so that they meet: instants on both sides of midnights, of a month's and a year's
# end, of both changes of the clocks, and of the instants at which owners change.
INSTANTS = [
    base + offset
    for base in (
        datetime(2025, 3, 30, 1, tzinfo=UTC),
        datetime(2025, 10, 26, 0, 30, tzinfo=UTC),
        datetime(2025, 12, 31, 18, 15, tzinfo=UTC),
        datetime(2025, 12, 31, 23, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2010, 11, 7, 2, 31, tzinfo=UTC),
    )
    for offset in (timedelta(microseconds=-1), timedelta(0), timedelta(minutes=29))
]
# The hours of the same instants, from which prices are recorded.
HOURS = sorted({(instant - START) // HOUR for instant in INSTANTS})
TENANTS = ["acme", "blue", "coal"]
# Few enough to come again, and to be voided: those of the second kind only by transactions that are
# left open.
KEYS = [f"key-{number}" for number in range(6)]
KEYS_OF_HELD_VOIDS = [f"late-{number}" for number in range(3)]
AGENTS = ["scout", "clerk"]
PRICE_TABLES = ["model_prices", "model_aliases", "price_list_rules", "tenant_price_lists"]
ZONES = ["UTC", "Europe/Madrid", "Asia/Kathmandu", "America/St_Johns"]
NEW_TYPE, NEW_OPERATION = "image", "rerank"
SELECTIONS = [
    ["daily_token_usage"],
    ["int_usage__hourly"],
    ["monthly_token_usage"],
    ["daily_token_usage", "monthly_token_usage"],
    ["int_usage__hourly", "hourly_token_usage"],
    ["daily_agent_token_usage"],
    ["daily_token_cost"],
    ["monthly_token_cost"],
    ["int_usage__hourly", "monthly_token_cost"],
    ["usage_events", "int_usage__hourly", "monthly_token_usage"],
]

instants = st.sampled_from(INSTANTS)
events = st.builds(
    Event,
    key=st.sampled_from([*KEYS, *KEYS_OF_HELD_VOIDS]),
    occurred_at=instants,
    tenant=st.sampled_from(TENANTS),
    tokens=st.sampled_from([0, 1, 10, 2**40]),
    token_type=st.sampled_from(["llm", "embedding", "embeddings", NEW_TYPE, "video"]),
    operation=st.sampled_from(["query", "sumarize", NEW_OPERATION, "dance"]),
    model=st.sampled_from(["gpt-4o", "alias", None]),
    agent=st.sampled_from([*AGENTS, None]),
    input_tokens=st.sampled_from([None, 0, A_HALF]),
    output_tokens=st.sampled_from([None, A_THIRD]),
    provider=st.sampled_from(["openai", "anthropic", None]),
    service_tier=st.sampled_from(["batch", None]),
)
owners = st.tuples(
    st.sampled_from(AGENTS), instants, st.sampled_from([*TENANTS, "the owner", None])
)
voids = st.tuples(st.sampled_from(TENANTS), st.sampled_from(KEYS))
prices = st.builds(
    some_rows,
    st.randoms(use_true_random=False),
    st.just(HOURS),
    st.just([*TENANTS, "the owner"]),
)


@dataclass(frozen=True)
class Write:
    """One writers' transaction."""

    events: list[Event]
    voids: list[tuple[str, str]]
    owners: list[tuple[str, datetime, str | None]]


@dataclass(frozen=True)
class Record:
    """Prices, aliases, rules and assignments, each by a transaction of its own, or left open."""

    rows: list[Recording]
    held: bool = False


@dataclass(frozen=True)
class Hold:
    """The same, left open."""

    write: Write


@dataclass(frozen=True)
class Release:
    """The oldest open transaction ends."""

    commit: bool


@dataclass(frozen=True)
class Change:
    """An alias more, labels more, another billing time zone."""

    alias: tuple[str, str, str] | None
    new_labels: bool
    zone: str | None


@dataclass(frozen=True)
class Rewrite:
    """A raw table is rewritten, perhaps while a build begins, which waits for the rewrite."""

    table: str
    command: str
    build: list[str] | None
    commits: bool


@dataclass(frozen=True)
class Replace:
    """Somebody replaces a view of the project by one that omits rows."""

    view: str


@dataclass(frozen=True)
class Build:
    """The number, selection and mode of builds; `kill_after` is a share of the last one's time."""

    at_once: int = 1
    select: list[str] | None = None
    full_refresh: bool = False
    kill_after: float | None = None
    writers: list[Write | Record] | None = None


writes = st.builds(
    Write,
    st.lists(events, max_size=6),
    st.lists(voids, max_size=2),
    st.lists(owners, max_size=2),
)
recordings = st.builds(Record, st.lists(prices, min_size=1, max_size=3))
changes = st.builds(
    Change,
    st.sampled_from(
        [
            None,
            ("token_type", "video", "llm"),
            ("token_type", "embeddings", "embedding"),
            ("operation", "dance", "chat"),
            ("operation", NEW_OPERATION, "query"),
        ]
    ),
    st.booleans(),
    st.sampled_from([None, *ZONES]),
)
builds = st.one_of(
    st.just(Build()),
    st.builds(Build, select=st.sampled_from(SELECTIONS)),
    st.builds(Build, writers=st.lists(writes | recordings, min_size=1, max_size=4)),
    st.builds(Build, kill_after=st.floats(0, 1)),
    st.builds(Build, at_once=st.just(2)),
    st.builds(Build, full_refresh=st.just(True), select=st.sampled_from([None, *SELECTIONS])),
)
rewriting = st.sampled_from(
    [
        "alter table {0} add column spare date generated always as (null::date) stored;"
        " alter table {0} drop column spare",
        "alter table {0} set unlogged; alter table {0} set logged",
        "create temporary table kept on commit drop as select * from {0};"
        " truncate {0}; insert into {0} select * from kept",
        "cluster {0} using {1}_pkey",
    ]
)
ALL_ROLLUPS = ["config.materialized:token_tracking_rollup"]
rewrites = st.builds(
    Rewrite,
    st.sampled_from(["usage_events", "usage_voids", "agent_owners"]),
    rewriting,
    st.sampled_from([None, [], ["int_usage__hourly"], ALL_ROLLUPS]),
    st.booleans(),
) | st.builds(
    Rewrite,
    st.sampled_from(PRICE_TABLES),
    rewriting,
    st.sampled_from([None, [], ["daily_token_cost"], ALL_ROLLUPS]),
    st.booleans(),
)
replacements = st.builds(
    Replace,
    st.sampled_from(["events", "voids", "agent_owners", *PRICE_TABLES]).map("stg_usage__{}".format),
)
steps = st.one_of(
    rewrites,
    replacements,
    writes,
    writes,
    recordings,
    st.builds(Hold, writes),
    st.builds(Record, st.lists(prices, min_size=1, max_size=3), held=st.just(True)),
    st.builds(Release, st.booleans()),
    changes,
    builds,
)
histories = st.builds(
    lambda start, first, priced, later: [*start, first, priced, *later],
    st.sampled_from([[Build()], [Build(at_once=2)], [Build(kill_after=0.5), Build()]]),
    # Something to count in each of them: Hypothesis plays the least one first.
    st.builds(Write, st.lists(events, min_size=1, max_size=6), st.just([]), st.just([])),
    st.builds(Record, st.lists(prices, min_size=2, max_size=4)),
    st.lists(steps, min_size=4, max_size=8),
)


class Player:
    """Plays one history against a database and a model of the builds' settings."""

    def __init__(self, warehouse: Warehouse, project: DbtProject) -> None:
        self.warehouse = warehouse
        self.project = project
        self.settings = warehouse.settings
        self.held: list[psycopg.Connection[Any]] = []
        self.voids_held: set[tuple[str, str]] = set()
        self.days_held = 0
        self.told: dict[str, Settings] = {}
        self.expected: dict[str, Marts] = {}
        self.expected_costs: dict[tuple[str, str], Marts] = {}
        self.comparisons = 0
        self.usual_time = 0.6
        self.built: Settings | None = None

    def play(self, step: object) -> None:
        """Do one step."""
        match step:
            case Write(events):
                self._write(step)
                # A conflict: the same key with another payload. The first one counts.
                self.warehouse.insert(
                    [replace(event, tokens=abs(event.tokens - 7)) for event in events[:1]]
                )
            case Record(held=False):
                self._write(step)
            case Record():
                self._hold_prices(step)
            case Hold(write):
                self._hold(write)
            case Release(commit):
                if self.held:
                    with closing(self.held.pop(0)) as connection:
                        connection.commit() if commit else connection.rollback()
            case Change():
                self._change(step)
            case Rewrite():
                self._rewrite(step)
            case Replace(view):
                self._replace(view)
            case Build():
                self._build(step)
            case _:
                raise AssertionError(step)
        self._check_now()

    def finish(self) -> None:
        """Finish everything; incremental and full refresh must then agree with the oracle."""
        while self.held:
            self.play(Release(commit=True))
        self.play(Build())
        incremental = self.warehouse.marts()
        # The aliases are those of the history: its untested builds are compared now.
        result = self._start("test").wait()
        assert result.green, result.said
        self.play(Build(full_refresh=True))
        assert self.warehouse.marts() == incremental
        before = self._written()
        self.play(Build())
        assert self._written() == before, "a build with nothing new wrote into a mart"

    def _write(self, step: Write | Record) -> None:
        if isinstance(step, Write):
            self.warehouse.insert(step.events, step.voids, step.owners)
        else:
            for procedure, rows in step.rows:
                self.warehouse.record(procedure, *rows)

    def _hold_prices(self, step: Record) -> None:
        # Separate instants, as below: none of HOURS is a few whole days from another one.
        self.days_held += 1
        connection = self.warehouse.connect(autocommit=False)
        self.held.append(connection)
        for procedure, rows in step.rows:
            for row in rows:
                instant = datetime.fromisoformat(str(row["valid_from"]))
                earlier = (instant - timedelta(days=self.days_held)).isoformat()
                held = {**row, "valid_from": earlier}
                self.warehouse.record(procedure, held, connection=connection)

    def _hold(self, write: Write) -> None:
        # Separate keys and instants: a writer would wait for an open transaction with the same key.
        # It voids events that others write, and that nobody else voids.
        mark = f"held-{len(self.told)}-{time.monotonic_ns()}"
        shift = timedelta(microseconds=time.monotonic_ns() % 997 + 2)
        voids = {
            (tenant, KEYS_OF_HELD_VOIDS[KEYS.index(key) % len(KEYS_OF_HELD_VOIDS)])
            for tenant, key in write.voids
        } - self.voids_held
        self.voids_held |= voids
        connection = self.warehouse.connect(autocommit=False)
        self.held.append(connection)
        self.warehouse.insert(
            [replace(event, key=f"{mark}-{event.key}") for event in write.events],
            voids,
            [(agent, instant + shift, owner) for agent, instant, owner in write.owners],
            connection,
        )

    def _change(self, change: Change) -> None:
        if change.alias:
            kind, alias, label = change.alias
            self.settings = replace(
                self.settings, aliases={**self.settings.aliases, (kind, alias): label}
            )
            with closing(self.warehouse.connect()) as connection:
                connection.execute(
                    "insert into token_tracking.label_aliases values (%s, %s, %s)"
                    " on conflict do nothing",
                    change.alias,
                )
        if change.new_labels:
            self.settings = replace(
                self.settings,
                token_types=(*TOKEN_TYPES[:-1], NEW_TYPE, "unknown"),
                operations=(*OPERATIONS, NEW_OPERATION),
            )
        if change.zone:
            self.settings = replace(self.settings, billing_timezone=change.zone)

    def _rewrite(self, rewrite: Rewrite) -> None:
        while self.held:  # the build would wait for them
            self.play(Release(commit=True))
        table = f"token_tracking_raw.{rewrite.table}"
        build = None
        with closing(self.warehouse.connect(autocommit=False)) as connection:
            connection.execute(rewrite.command.format(table, rewrite.table))  # type: ignore[arg-type]
            if rewrite.build is not None:
                build = self._start("run", *(["--select", *rewrite.build] if rewrite.build else []))
                until_waiting_for(self.warehouse, table)
            connection.commit() if rewrite.commits else connection.rollback()
        if build is not None:
            result = build.wait()
            assert result.green, result.said
            if not rewrite.build:
                self.built = self.settings
            self.check(whole=not rewrite.build)

    def _replace(self, view: str) -> None:
        with closing(self.warehouse.connect()) as connection:
            [(query,)] = connection.execute(
                "select pg_get_viewdef(to_regclass(%s))", (f"token_tracking.{view}",)
            ).fetchall()
            if query:
                connection.execute(
                    f"create or replace view token_tracking.{view} as"
                    f" select * from ({query.rstrip(';')}) as own where false"
                )
        # Only a build of the views brings it back.
        self.play(Build())

    def _start(self, *words: str) -> RunningBuild:
        return self.project.start(
            *words,
            billing_timezone=self.settings.billing_timezone,
            token_types=list(self.settings.token_types),
            operations=list(self.settings.operations),
        )

    def _build(self, build: Build) -> None:
        words = ["run"]
        if build.select:
            words += ["--select", *build.select]
        if build.full_refresh:
            words += ["--full-refresh"]
        started = time.monotonic()
        if build.select is None and (build.kill_after is not None or self.built != self.settings):
            self.built = None  # until its end, some views are of the older settings
        running = [self._start(*words) for _ in range(build.at_once)]
        for write in build.writers or []:
            self._write(write)
            self._check_now()
            time.sleep(0.05)
        if build.kill_after is not None:
            time.sleep(self.usual_time * build.kill_after)
            running[0].kill()
        results = [each.wait() for each in running]
        if build == Build():
            self.usual_time = time.monotonic() - started
        if build.select is None and build.kill_after is None:
            self.built = self.settings
        if build.kill_after is None:
            assert all(result.green for result in results), [result.said for result in results]
        else:
            self._until_no_build_is_left()
        self.check(whole=build.select is None and build.kill_after is None)

    def _check_now(self) -> None:
        """Compare the totals as of now: the views follow the settings of the last whole build."""
        if self.built:
            settings = replace(self.built, aliases=self.settings.aliases)
            replace(self.warehouse, settings=settings).check_now()

    def _until_no_build_is_left(self) -> None:
        """A killed client's backend ends when it next looks at its socket."""
        deadline = time.monotonic() + 20
        while self.warehouse.rows(
            "select 1 from pg_stat_activity"
            " where datname = current_database() and application_name = 'token-tracking-dbt'"
        ):
            assert time.monotonic() < deadline, "a killed build still has its backend"
            time.sleep(0.02)
        left = self.warehouse.rows(
            "select * from pg_locks where locktype = 'advisory' or relation in"
            " (to_regclass('token_tracking.build_state'),"
            " to_regclass('token_tracking.build_proofs'))"
        )
        assert not left, left

    def check(self, *, whole: bool) -> None:
        """Compare each rollup with the oracle as of the snapshot and settings of its own build."""
        status = self.warehouse.status()
        if "int_usage__hourly" in status:
            self.told.setdefault(status["int_usage__hourly"][1], self.settings)
        of_prices = self.warehouse.price_snapshots()
        found = self.warehouse.marts()
        with closing(self.warehouse.connect()) as connection:
            raw, prices = Raw.read(connection), Prices.read(connection)
        # What a snapshot sees never changes; but rows that were written again have new numbers.
        for snapshot in {snapshot for _, snapshot in status.values()} - self.expected.keys():
            self.expected[snapshot] = count(
                raw.as_of(Snapshot.parse(snapshot)), self.told[snapshot]
            )
        seen = {mart: (status[mart][1], of_prices[mart]) for mart in of_prices}
        for of_usage, of_price in set(seen.values()) - self.expected_costs.keys():
            self.expected_costs[of_usage, of_price] = count_costs(
                raw.as_of(Snapshot.parse(of_usage)),
                prices.as_of(Snapshot.parse(of_price)),
                self.told[of_usage],
            )
        # A view is as current as the relations that it reads.
        sources = {mart: mart for mart in ROLLUPS} | {"unmapped_labels": "int_usage__hourly"}
        if whole:
            sources["tenant_token_usage"] = "daily_token_usage"
        for mart, source in sources.items():
            if source in status and mart in found:
                expected = (
                    self.expected_costs[seen[source]]
                    if source in seen
                    else self.expected[status[source][1]]
                )
                rows = expected[mart]
                wrong = sorted(set(found[mart]) ^ set(rows), key=repr)[:6]
                assert found[mart] == rows, f"{mart} as of {status[source]}: {wrong}"
                self.comparisons += len(rows)
        if whole:
            self.warehouse.check_billed_events()

    def _written(self) -> list[tuple[Any, ...]]:
        """Return where each row of each rollup is, and the transaction that wrote it."""
        return [
            (mart, *row)
            for mart in ("int_usage__hourly", *ROLLUPS)
            for row in self.warehouse.rows(
                f"select ctid::text, xmin::text from token_tracking.{mart} order by 1"
            )
        ]


def play(server: Server, scratch: Path, history: list[object]) -> int:
    """Play a history in a new database; return how many rows were compared."""
    with contextmanager(fresh_database)(server) as database:
        project = DbtProject({**database.env, "PGTZ": "Asia/Kolkata"}, scratch)
        # `dbt run` leaves the aliases to the history.
        player = Player(Warehouse(database, Settings(aliases={})), project)
        try:
            for step in history:
                player.play(step)
            player.finish()
        finally:
            for connection in player.held:
                connection.close()
        return player.comparisons


def test_a_rewrite_before_a_partial_build(server: Server, tmp_path: Path) -> None:
    """What was not built again is still as of the rows that were there."""
    event = Event("key-1", INSTANTS[0], agent=AGENTS[0])
    write = Write([event, replace(event, key="key-2")], [(event.tenant, "key-1")], [])
    purge = (
        "create temporary table kept on commit drop as select * from {0};"
        " truncate {0}; insert into {0} select * from kept"
    )
    for table in ("usage_events", "usage_voids"):
        rewrite = Rewrite(table, purge, ["int_usage__hourly"], commits=True)
        assert play(server, tmp_path, [Build(), write, Build(), rewrite]) > 0


@pytest.mark.timeout(0)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_history_ends_in_exact_totals(server: Server, tmp_path: Path, shard: int) -> None:
    compared: list[int] = []

    @settings(
        max_examples=-(-HISTORIES // SHARDS),
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(histories)
    def every_history(history: list[object]) -> None:
        compared.append(play(server, tmp_path, history))

    every_history()
    assert len(compared) >= HISTORIES // SHARDS
    assert sum(compared) > 0, "no row was ever compared"
