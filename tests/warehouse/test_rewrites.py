"""Raw tables that are rewritten while a build, a check or a report begins."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE, TEMPLATE, Database, debian_15, started_server
from tests.support.directed import PURGE, PURGE_WITH_NUMBERS, until_waiting_for
from tests.support.project import DbtProject, Edit
from tests.support.warehouse import Event, Warehouse, WrongTotalsError
from token_tracking.raw.schema import apply_schema
from token_tracking.report.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from token_tracking.embedded.server import Server

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RAW = "token_tracking_raw.usage_events"
OWNERS = "token_tracking_raw.agent_owners"
ROLLUPS_ALONE = ("run", "--select", "config.materialized:token_tracking_rollup")
GENERATED = "alter table {0} add column day date generated always as (date '2026-01-01') stored"
REWRITES = [
    (RAW, GENERATED),
    (RAW, PURGE_WITH_NUMBERS),
    (OWNERS, GENERATED),
    (OWNERS, PURGE_WITH_NUMBERS),
]
REWRITE_IDS = ["alter events", "purge events", "alter owners", "purge owners"]


@pytest.fixture
def database(prebuilt: Database) -> Database:
    """A database with totals, which each of these tests rewrites."""
    return prebuilt


def usage(warehouse: Warehouse, mark: str = "") -> None:
    warehouse.insert(
        [Event(f"{mark}{number}", NOON + number * DAY, agent="bot") for number in range(20)],
        owners=[("bot", NOON - DAY, "owner")],
    )


def rewrite_as_a_build_begins(
    project: DbtProject,
    warehouse: Warehouse,
    table: str,
    rewrite: str,
    *words: str,
) -> None:
    """Rewrite a table in a transaction that ends while the build waits for it."""
    with closing(warehouse.connect(autocommit=False)) as other:
        other.execute(rewrite.format(table))  # type: ignore[arg-type]
        build = project.start(*words)
        until_waiting_for(warehouse, table)
        other.commit()
    result = build.wait()
    assert result.green, result.said


@pytest.mark.parametrize(
    ("table", "rewrite", "words"),
    [
        *((*rewrite, ROLLUPS_ALONE) for rewrite in REWRITES),
        (OWNERS, PURGE, ROLLUPS_ALONE),
        (RAW, PURGE, ("build",)),
    ],
    ids=[*REWRITE_IDS, "owners as new rows", "events as new rows, whole build"],
)
def test_a_rewrite_as_a_build_begins_changes_no_total(
    project: DbtProject, warehouse: Warehouse, table: str, rewrite: str, words: tuple[str, ...]
) -> None:
    usage(warehouse)
    project.must("run", "--exclude", "monthly_token_usage")
    warehouse.insert([Event("new", NOON)])
    rewrite_as_a_build_begins(project, warehouse, table, rewrite, *words)
    warehouse.check()
    project.must("build")
    assert len(warehouse.check()["daily_token_usage"]) == 20 + 1


@pytest.mark.parametrize("rewrite", [GENERATED, PURGE_WITH_NUMBERS], ids=["alter", "purge"])
def test_a_rewrite_as_a_check_begins_is_no_difference(
    project: DbtProject, warehouse: Warehouse, rewrite: str
) -> None:
    """Also if each transaction of a session has a single snapshot by default."""
    usage(warehouse)
    project.must("build")
    options = {"PGOPTIONS": "-c default_transaction_isolation=serializable"}
    project = DbtProject({**project.env, **options}, project.scratch)
    rewrite_as_a_build_begins(project, warehouse, RAW, rewrite, "test", "--select", "tag:full")


def test_a_table_filled_anew_differs_until_the_next_build(
    project: DbtProject, warehouse: Warehouse
) -> None:
    """Its rows are new, so the previous build has not seen them."""
    usage(warehouse)
    project.must("build")
    with closing(warehouse.connect(autocommit=False)) as other:
        other.execute(PURGE.format(RAW))  # type: ignore[arg-type]
        other.commit()
    test = "base_equals_raw_as_of_its_snapshot_full"
    assert project.run("test", "--select", "tag:full").statuses[test] == "fail"
    project.must("build")
    assert project.run("test", "--select", "tag:full").green
    assert len(warehouse.check()["daily_token_usage"]) == 20


def test_a_view_is_not_replaced_under_a_build(project: DbtProject, warehouse: Warehouse) -> None:
    """What the base read of the table agrees with what the state says of it."""
    usage(warehouse)
    project.must("run")
    warehouse.insert([Event("new", NOON)])
    with (
        closing(warehouse.connect(autocommit=False)) as gate,
        closing(warehouse.connect(autocommit=False)) as other,
    ):
        gate.execute("lock table token_tracking.int_usage__hourly in share mode")
        build = project.start("run", "--select", "int_usage__hourly")
        until_waiting_for(warehouse, "token_tracking.int_usage__hourly")
        other.execute("set local lock_timeout = '100ms'")
        with pytest.raises(Exception, match="lock timeout"):
            other.execute(
                "create or replace view token_tracking.stg_usage__voids as select tenant_id"
                " as requester_tenant_id, idempotency_key, reason, voided_by, recorded_at,"
                " ingest_xid from token_tracking_raw.usage_voids where false"
            )
        gate.rollback()
    assert build.wait().green
    project.must("run")
    warehouse.check()


def test_a_wait_for_a_change_of_a_table_ends_in_a_sentence(
    project: DbtProject, warehouse: Warehouse
) -> None:
    usage(warehouse)
    project.must("run")
    wait = "begin\n        set local lock_timeout = "
    hasty = Edit("macros/protocol/begin_build.sql", f"{wait}'60s'", f"{wait}'1s'")
    project = DbtProject(project.env, project.scratch, (hasty,))
    with closing(warehouse.connect(autocommit=False)) as other:
        other.execute("set application_name = 'nightly'; lock table token_tracking_raw.usage_voids")
        refused = project.run(*ROLLUPS_ALONE)
    assert not refused.green
    says = 'usage_voids" is locked for a change by process '
    assert says in refused.said
    assert "application nightly" in refused.said
    project.must("build")
    warehouse.check()


# Without the locks a build's snapshot may be older than the file that it reads.
UNLOCKED = (
    Edit(
        "macros/protocol/begin_build.sql",
        "lock table {{ inputs | join(', ') }} in access share mode;",
        "",
    ),
    Edit("macros/protocol/begin_build.sql", "{{ wait_for_inputs(inputs) }}", ""),
)
# Without a look at what lies behind the ends of the raw tables.
BLIND = Edit("macros/protocol/raw_changes.sql", "{{ rows }}.ctid >", "false and {{ rows }}.ctid >")


@pytest.mark.parametrize(("table", "rewrite"), REWRITES, ids=REWRITE_IDS)
def test_a_build_mends_totals_older_than_their_file(
    project: DbtProject, warehouse: Warehouse, table: str, rewrite: str
) -> None:
    usage(warehouse)
    project.must("build")
    unlocked = DbtProject(project.env, project.scratch, UNLOCKED)
    rewrite_as_a_build_begins(unlocked, warehouse, table, rewrite, *ROLLUPS_ALONE)
    with pytest.raises(WrongTotalsError):
        warehouse.check()
    warehouse.insert([Event("since", NOON)])
    project.must("build")
    warehouse.check()


@pytest.mark.parametrize("table", [RAW, OWNERS], ids=["events", "owners"])
def test_builds_are_red_until_wrong_totals_are_mended(
    project: DbtProject, warehouse: Warehouse, table: str
) -> None:
    """Also where some were built on top without tests, and no build looks at the tables' ends."""
    usage(warehouse)
    project.must("build")
    unlocked = DbtProject(project.env, project.scratch, (*UNLOCKED, BLIND))
    rewrite_as_a_build_begins(unlocked, warehouse, table, GENERATED, *ROLLUPS_ALONE)
    for number in range(2):
        warehouse.insert([Event(f"since-{number}", NOON + 40 * DAY)])
        unlocked.must(*ROLLUPS_ALONE)
    for _ in range(2):
        refused = project.run("build")
        assert refused.statuses["each_event_is_billed_to_the_owner_of_its_time"] == "fail"
    project.must("build", "--full-refresh")
    warehouse.check()


def test_what_was_built_without_tests_is_compared_by_the_next(
    project: DbtProject, warehouse: Warehouse
) -> None:
    usage(warehouse)
    project.must("build")
    for number in range(3):
        warehouse.insert([Event(f"untested-{number}", NOON + 40 * DAY + number * DAY)])
        project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking.int_usage__hourly set tokens = tokens + 1"
            " where usage_date = '2026-04-19'"
        )
    test = "base_equals_raw_as_of_its_snapshot"
    for _ in range(2):
        assert project.run("test").statuses[test] == "fail"
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking.int_usage__hourly set tokens = tokens - 1"
            " where usage_date = '2026-04-19'"
        )
    project.must("build")
    proofs = warehouse.rows("select distinct run_no from token_tracking.build_proofs")
    assert proofs == warehouse.rows(
        "select distinct run_no from token_tracking.build_state where run_no is not null"
    )


def test_rows_under_old_numbers_are_counted(project: DbtProject, warehouse: Warehouse) -> None:
    """Like after a data-only restore or a replication, in each raw table."""
    usage(warehouse)
    project.must("build")
    inserts = (
        "insert into token_tracking_raw.usage_events (tenant_id, idempotency_key, tokens,"
        " token_type, operation, occurred_at, ingest_xid)"
        f" values ('acme', 'restored', 7, 'llm', 'query', '{NOON}', 3)",
        "insert into token_tracking_raw.usage_voids (tenant_id, idempotency_key, reason,"
        " voided_by, ingest_xid) values ('acme', '1', 'test', 'test', 3)",
        "insert into token_tracking_raw.agent_owners (agent_id, valid_from, revision,"
        f" owner_tenant_id, recorded_by, ingest_xid) values ('bot', '{NOON}', 1, 'buyer', 'x', 3)",
    )
    for insert in inserts:
        table = insert.split()[2]
        with closing(warehouse.connect()) as connection:
            connection.execute(f"alter table {table} disable trigger stamp_row")  # type: ignore[arg-type]
            connection.execute(insert)  # type: ignore[arg-type]
            connection.execute(f"alter table {table} enable always trigger stamp_row")  # type: ignore[arg-type]
        project.must("build")
        warehouse.check()
    # Nothing is new, and no work is repeated.
    assert project.must("run").messages["int_usage__hourly"] == "UNCHANGED"


def test_a_restore_under_way_is_counted(project: DbtProject, warehouse: Warehouse) -> None:
    """Its rows have old numbers and precede others, which commit and are counted first."""
    usage(warehouse)
    project.must("build")
    with closing(warehouse.connect(autocommit=False)) as restore:
        with restore.cursor().copy(
            "copy token_tracking_raw.usage_events (tenant_id, idempotency_key, tokens, token_type,"
            " operation, occurred_at, ingest_xid) from stdin"
        ) as rows:
            for number in range(200):
                rows.write_row(("acme", f"restored {number}", 1000, "llm", "query", NOON, 3))
        warehouse.insert([Event(f"later {number}", NOON) for number in range(100)])
        project.must("build")
        warehouse.check()
        restore.commit()
    project.must("build")
    warehouse.check()


@pytest.mark.parametrize("table", ["int_usage__hourly", "daily_token_usage"])
def test_a_truncated_rollup_is_rebuilt(
    project: DbtProject, warehouse: Warehouse, table: str
) -> None:
    """Otherwise its old periods would be missing, and their later changes would go unnoticed."""
    usage(warehouse)
    project.must("build")
    with closing(warehouse.connect()) as connection:
        connection.execute(f"truncate token_tracking.{table}")  # type: ignore[arg-type]
    warehouse.insert([Event("new", NOON + timedelta(days=70))])
    project.must("build")
    warehouse.check()
    warehouse.insert(voids=[("acme", "1")])
    project.must("build")
    warehouse.check()


@pytest.fixture
def server_of_its_own() -> Iterator[Server]:
    yield from started_server(debian_15(), {**NOT_DURABLE, "shared_preload_libraries": ""})


def set_back(server: Server, warehouse: Warehouse, transactions: int) -> None:
    """Set the transaction counter back, like a repair with pg_resetwal may."""
    for database in ("postgres", "template1", TEMPLATE):
        with closing(psycopg.connect(server.url(database), autocommit=True)) as connection:
            connection.execute("vacuum freeze")
    [(counter,)] = warehouse.rows("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    server.stop()
    owner = server.data_dir.stat().st_uid
    subprocess.run(
        [server.bin_dir / "pg_resetwal", "-x", str(counter - transactions), server.data_dir],
        user=owner if os.geteuid() == 0 else None,
        cwd="/",
        check=True,
        capture_output=True,
    )
    server.start()


def let_transactions_pass(warehouse: Warehouse, number: int) -> None:
    with closing(warehouse.connect()) as connection:
        connection.execute(
            f"do $$ begin for number in 1..{number} loop"  # type: ignore[arg-type]
            " perform pg_current_xact_id(); commit; end loop; end $$"
        )


@pytest.mark.parametrize("has_passed", [False, True], ids=["behind", "past"])
def test_a_counter_that_was_set_back_leaves_no_event_out(
    server_of_its_own: Server, tmp_path: Path, *, has_passed: bool
) -> None:
    """Once a build says what to do; once the counter has passed the saved snapshot by then."""
    server = server_of_its_own
    database = Database(server.url(TEMPLATE), server.environment(TEMPLATE))
    warehouse = Warehouse(database)
    project = DbtProject(dict(database.env), tmp_path)
    let_transactions_pass(warehouse, 25_000)
    usage(warehouse)
    project.must("build")
    warehouse.insert([Event(f"unseen-{number}", NOON) for number in range(5)])
    set_back(server, warehouse, 20_000)
    if has_passed:
        warehouse.insert([Event(f"early-{number}", NOON) for number in range(4)])
        let_transactions_pass(warehouse, 20_100)
    else:
        refused = project.run("run")
        assert "token-tracking schema apply" in refused.said
    with closing(warehouse.connect()) as connection:
        assert apply_schema(connection).stamped == (0 if has_passed else 20 + 1 + 5)
    warehouse.insert([Event(f"since-{number}", NOON) for number in range(3)])
    for _ in range(2):
        project.must("build")
        warehouse.check()
    counted = "select sum(event_count)::int from token_tracking.monthly_token_usage"
    assert warehouse.rows(counted) == [(20 + 5 + 3 + 4 * has_passed,)]


def test_no_table_is_written_again_under_a_report(
    project: DbtProject, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage(warehouse)
    project.must("run")
    for name, value in warehouse.database.env.items():
        monkeypatch.setenv(name, value)
    with (
        Reading.of("token_tracking"),
        closing(warehouse.connect(autocommit=False)) as other,
        pytest.raises(psycopg.errors.LockNotAvailable),
    ):
        other.execute("set local lock_timeout = '100ms'; " + GENERATED.format(RAW))  # type: ignore[arg-type]
