"""`token-tracking refresh`: a real process, on a server that comes and goes."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from typer.testing import CliRunner

from tests.support import ROOT
from tests.support.commands import LONGEST_WAIT, environment, forked_command
from tests.support.commands import refresh_once as command
from tests.support.databases import (
    NOT_DURABLE,
    TEMPLATE,
    Database,
    copy_database,
    fresh_database,
    started_server,
)
from token_tracking.cli import app
from token_tracking.refresh.durations import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_tracking.embedded.server import Server

PARTS = ("dbt_project.yml", "profiles.yml", "selectors.yml", "macros", "models", "seeds")
RECORD = "select token_tracking_raw.track_token_usage(%s, %s, p_operation => %s, p_agent_id => %s)"
LOOKS = """
    select query_start from pg_stat_activity
    where datname = current_database() and application_name = 'token-tracking'
"""
# A build of the rollups waits for its turn in the first of them.
WAITING = """
    select count(*)::int from pg_stat_activity
    where
        datname = current_database()
        and application_name = 'token-tracking-dbt'
        and wait_event_type = 'Lock'
"""


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Running:
    """A running refresh, and the lines that it has written."""

    process: subprocess.Popen[str]
    lines: queue.Queue[dict[str, Any] | None]

    def next(self, event: str, **wanted: object) -> dict[str, Any]:
        """Wait for a line about such an event; skip the lines before it."""
        deadline = time.monotonic() + LONGEST_WAIT
        while True:
            line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, "the refresh has ended"
            if line["event"] == event and wanted.items() <= line.items():
                return line

    def told(self) -> list[dict[str, Any] | None]:
        """Return the lines that were not waited for, and forget them."""
        lines: list[dict[str, Any] | None] = []
        while not self.lines.empty():
            lines.append(self.lines.get())
        return lines

    def end(self, sent: signal.Signals) -> int:
        self.process.send_signal(sent)
        return self.process.wait(LONGEST_WAIT)


@contextmanager
def refreshing(project: Path, env: dict[str, str], *words: str) -> Iterator[Running]:
    command = [*forked_command(), "refresh", "--format", "json", *words]
    with subprocess.Popen(
        command, cwd=project, env=environment(env), stdout=subprocess.PIPE, text=True
    ) as process:
        lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(json.loads(line))
            lines.put(None)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield Running(process, lines)
        finally:
            process.kill()
            reader.join()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that may be killed."""
    yield from started_server(None, NOT_DURABLE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dbt project, whose files may be changed."""
    copy = tmp_path_factory.mktemp("project")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part)
        else:
            shutil.copy(ROOT / part, copy / part)
    return copy


@pytest.fixture(scope="module")
def database(own_server: Server) -> Database:
    """A database that is removed with its server: no connection to drop it survives a kill."""
    with closing(psycopg.connect(own_server.url("postgres"), autocommit=True)) as connection:
        copy_database(connection, "refreshed", TEMPLATE)
    return Database(own_server.url("refreshed"), own_server.environment("refreshed"))


@pytest.fixture(scope="module")
def running(project: Path, database: Database) -> Iterator[Running]:
    with refreshing(project, database.env, "--every", "100ms") as running:
        assert running.next("started")["every_seconds"] == 0.1
        first = running.next("built")
        assert first["built"] == "project"
        assert first["lag_seconds"] is None
        yield running


@pytest.fixture
def resident(running: Running, database: Database) -> Running:
    """A refresh that has built everything."""
    wait_until_idle(running, database)
    return running


def wait_until_idle(running: Running, database: Database) -> None:
    """Wait until the refresh, and any other one, has looked and found nothing."""

    def have_looked(since: set[tuple]) -> bool:
        looks = database.rows(LOOKS)
        return bool(looks) and since.isdisjoint(looks)

    for _ in range(2):
        seen = set(database.rows(LOOKS))
        until(lambda seen=seen: have_looked(seen))
    running.told()


def record(
    database: Database,
    tenant: str,
    tokens: int = 100,
    operation: str = "chat",
    agent: str | None = None,
) -> None:
    assert database.value(RECORD, (tenant, tokens, operation, agent)) is True


def total(database: Database, tenant: str, operation: str = "chat") -> object:
    return database.value(
        "select coalesce(sum(tokens), 0)::int from token_tracking.daily_token_usage"
        " where tenant_id = %s and operation = %s::token_tracking.operation_type",
        (tenant, operation),
    )


@contextmanager
def held_builds(database: Database) -> Iterator[psycopg.Connection[tuple]]:
    """Hold the lock that serializes builds, until the connection rolls back."""
    with closing(psycopg.connect(database.url)) as holder:
        holder.execute("lock table token_tracking.build_state in share row exclusive mode")
        yield holder


def as_of(database: Database) -> object:
    return database.value("select max(as_of) from token_tracking.build_status")


def test_events_are_counted_and_the_lag_is_told(resident: Running, database: Database):
    with held_builds(database):
        record(database, "counted", 7)
        time.sleep(1)
        record(database, "counted", 7)
        record(database, "counted", 7)
    done = resident.next("built")
    assert total(database, "counted") == 21
    assert (done["events"], done["voids"], done["owners"]) == (3, 0, 0)
    assert done["built"] == "rollups"
    assert done["lag_seconds"] > 1
    assert done["lag_seconds"] > done["build_seconds"] > 0
    assert done["run_number"] == database.value(
        "select run_number from token_tracking.build_status where model = 'daily_token_usage'"
    )


def test_nothing_new_costs_no_build(resident: Running, database: Database):
    record(database, "old")
    resident.next("built", events=1)
    wait_until_idle(resident, database)
    built = as_of(database)
    for _ in range(5):
        wait_until_idle(resident, database)
    assert as_of(database) == built
    record(database, "new")
    resident.next("built", events=1)


def test_a_void_and_a_backdated_owner_are_noticed(resident: Running, database: Database):
    with closing(database.connect()) as connection:
        connection.execute(
            "select token_tracking_raw.track_token_usage('maker', 50, p_operation => 'chat',"
            " p_idempotency_key => 'key', p_agent_id => 'agent')"
        )
        resident.next("built", events=1)
        assert total(database, "maker") == 50
        connection.execute(
            "select token_tracking_raw.record_agent_owner('agent', 'buyer', %s)",
            (datetime(2026, 1, 1, tzinfo=UTC),),
        )
        done = resident.next("built", owners=1)
        assert done["events"] == 0
        assert done["lag_seconds"] > 0
        assert (total(database, "maker"), total(database, "buyer")) == (0, 50)
        connection.execute("select token_tracking_raw.void_token_usage('maker', 'key', 'test')")
        assert resident.next("built", voids=1)["events"] == 0
        assert total(database, "buyer") == 0


PRICED = {"provider": "unknown", "model": "priced", "token_kind": "unsplit"}
SINCE = "2026-01-01T00:00Z"


def record_prices(database: Database, procedure: str, *rows: dict[str, object]) -> None:
    query = f"select rejected::int from token_tracking_raw.{procedure}(%s::json)"
    dated = [{**row, "valid_from": SINCE} for row in rows]
    assert database.value(query, (json.dumps(dated),)) == 0


@pytest.mark.parametrize(
    ("procedure", "row", "model", "costs"),
    [
        ("record_model_prices", {**PRICED, "model": "new", "amount": 3}, "new", (0, 3)),
        (
            "record_model_aliases",
            {"alias": "nick", "priced_provider": "unknown", "priced_model": "priced"},
            "nick",
            (0, 5),
        ),
        (
            "record_price_list_rules",
            {"price_list": "twice", "base_list": "list", "factor": 2},
            "priced",
            (0, 10),
        ),
        (
            "record_tenant_price_lists",
            {"tenant_id": "record_tenant_price_lists", "price_list": "dear"},
            "priced",
            (5, 7),
        ),
    ],
)
def test_prices_are_noticed_without_new_usage(
    resident: Running,
    database: Database,
    procedure: str,
    row: dict[str, object],
    model: str,
    costs: tuple[int, int],
):
    def cost() -> object:
        return database.value(
            "select sum(cost)::int from token_tracking.monthly_token_cost"
            " where tenant_id = %s and is_billed",
            (procedure,),
        )

    record_prices(
        database,
        "record_model_prices",
        {**PRICED, "amount": 5},
        {**PRICED, "amount": 7, "price_list": "dear"},
    )
    payer = {"tenant_id": "record_price_list_rules", "price_list": "twice"}
    record_prices(database, "record_tenant_price_lists", payer)
    database.value(
        "select token_tracking_raw.track_token_usage(%s, 1000000, p_model => %s)",
        (procedure, model),
    )
    wait_until_idle(resident, database)
    assert cost() == costs[0]
    record_prices(database, procedure, row)
    done = resident.next("built")
    assert (done["events"], done["built"], done["lag_seconds"]) == (0, "rollups", None)
    assert cost() == costs[1]
    wait_until_idle(resident, database)
    built = as_of(database)
    record_prices(database, procedure, row)  # which is known
    wait_until_idle(resident, database)
    assert as_of(database) == built


def test_what_others_did_to_the_warehouse_is_noticed(resident: Running, database: Database):
    record(database, "shortened", 5, "chatty")
    resident.next("built", events=1)
    assert total(database, "shortened", "unknown") == 5
    with closing(database.connect()) as connection:
        connection.execute(
            "insert into token_tracking.label_aliases values ('operation', 'chatty', 'chat')"
        )
        assert resident.next("built")["built"] == "models"
        assert total(database, "shortened") == 5
        connection.execute("drop table token_tracking.monthly_token_usage cascade")
        assert resident.next("built")["built"] == "models"
        assert database.value("select count(*)::int from token_tracking.monthly_token_usage")
        # As a build of the daily totals alone leaves the monthly ones.
        connection.execute(
            "update token_tracking.build_state set run_no = run_no - 1"
            " where model = 'monthly_token_usage'"
        )
        assert resident.next("built")["built"] == "models"
    wait_until_idle(resident, database)


def test_a_server_killed_and_restarted(resident: Running, database: Database, own_server: Server):
    own_server.kill()
    failed = resident.next("failed")
    assert (failed["nodes"], failed["attempt"]) == ([], 1)
    again = [resident.next("failed") for _ in range(3)]
    assert [line["attempt"] for line in again] == [2, 3, 4]
    # The error of the broken connection, and that no other can be opened; each of them once.
    messages = [line["message"] for line in (failed, *again) if line["message"]]
    assert len(messages) == len(set(messages)) <= 2
    assert any("cannot be reached" in message for message in messages)
    assert 0.5 <= failed["retry_seconds"] <= 1
    assert again[-1]["retry_seconds"] >= 4
    own_server.start()
    record(database, "survivor", 9)
    resident.next("built", events=1)
    assert resident.next("recovered")["attempts"] >= 4
    assert total(database, "survivor") == 9


def test_a_broken_model_is_named_once_and_mended(
    resident: Running, database: Database, project: Path
):
    model = project / "models" / "marts" / "daily_token_usage.sql"
    text = model.read_text()
    try:
        model.write_text(text.replace("hourly.model,", "max(hourly.tokens / 0)::text as model,", 1))
        record(database, "patient", 4)
        failed = resident.next("failed")
        assert failed["nodes"] == ["daily_token_usage"]
        assert failed["message"].startswith("daily_token_usage: ")
        assert failed["message"].endswith("division by zero")
        assert "\n" not in failed["message"]
        again = resident.next("failed")
        assert (again["attempt"], again["message"]) == (2, None)
        assert total(database, "patient") == 0
    finally:
        model.write_text(text)
    assert resident.next("built")["built"] == "project"
    resident.next("recovered")
    assert total(database, "patient") == 4


def test_two_at_once_stay_right_and_a_build_is_given_up(
    resident: Running, database: Database, project: Path
):
    with refreshing(project, database.env, "--every", "100ms", "--grace", "1s") as other:
        other.next("built")
        done = threading.Event()

        def write() -> None:
            with closing(database.connect()) as connection:
                while not done.is_set():
                    connection.execute(RECORD, ("shared", 1, "chat", None))

        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            built = [running.next("built") for _ in range(3) for running in (resident, other)]
        finally:
            done.set()
            for writer in writers:
                writer.join()
        assert all(line["events"] is not None for line in built)
        recorded = "select count(*)::int from token_tracking_raw.usage_events where tenant_id = %s"
        until(lambda: total(database, "shared") == database.value(recorded, ("shared",)))
        wait_until_idle(resident, database)
        assert not [line for line in other.told() if line and line["event"] == "failed"]
        with held_builds(database) as holder:
            record(database, "given up", 3)
            until(lambda: database.value(WAITING) == 2)
            started = time.monotonic()
            assert other.end(signal.SIGTERM) == 0
            assert time.monotonic() - started > 1
            assert other.next("stopped")["message"] == "stopped: a build took over 1 s"
            # Nothing of it is left on the server, although the lock was not released.
            until(lambda: database.value(WAITING) == 1)
            holder.rollback()
            resident.next("built", events=1)
            assert total(database, "given up") == 3


def test_stopping_during_a_build(resident: Running, database: Database, project: Path):
    with (
        refreshing(project, database.env, "--grace", "1h") as patient,
        refreshing(project, database.env, "--grace", "1h") as twice,
    ):
        patient.next("built")
        twice.next("built")
        with held_builds(database) as holder:
            record(database, "stopped", 3)
            until(lambda: database.value(WAITING) == 3)
            patient.process.send_signal(signal.SIGTERM)
            twice.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                twice.process.wait(1)
            assert twice.end(signal.SIGTERM) == 128 + signal.SIGTERM
            assert twice.next("stopped")["message"] == "stopped at once"
            assert patient.process.poll() is None
            holder.rollback()
            assert patient.process.wait(LONGEST_WAIT) == 0
            assert patient.next("built")
            assert patient.next("stopped")["message"] == "stopped"
            assert total(database, "stopped") == 3


@pytest.fixture
def another(own_server: Server) -> Iterator[Database]:
    """A database without a running refresh."""
    yield from fresh_database(own_server)


def test_once_in_a_script(project: Path, another: Database):
    record(another, "script", 8)
    elsewhere = another.url.replace(another.env["PGDATABASE"], "elsewhere")
    done = command(project, another.env, "--once", TOKEN_TRACKING_DSN=elsewhere)
    assert done.returncode == 0, done.stderr
    assert total(another, "script") == 8
    assert "run 1: all counted for the first time; built in" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("Warning: TOKEN_TRACKING_DSN leads services to another")
    assert len(done.stderr.splitlines()) == 1
    with closing(another.connect()) as connection:
        connection.execute("alter table token_tracking_raw.usage_events rename tokens to gone")
    failed = command(project, another.env, "--once")
    assert failed.returncode == 1
    assert "stg_usage__events: " in failed.stderr
    assert "column events.tokens does not exist" in failed.stderr
    assert (len(failed.stderr.splitlines()), failed.stdout) == (1, "")


def test_without_raw_schema_it_says_what_to_run(project: Path, own_server: Server):
    failed = command(project, own_server.environment("postgres"))
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert "has no token_tracking_raw schema: run token-tracking schema apply" in last
    assert "Traceback" not in failed.stderr


def test_without_dbt_it_says_what_to_install(project: Path):
    script = "import sys; sys.modules['dbt'] = None; from token_tracking.cli import main; main()"
    failed = subprocess.run(
        [sys.executable, "-c", script, "refresh"],
        cwd=project,
        env=environment({}),
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT,
    )
    assert failed.returncode == 1
    assert "dbt is not installed: pip install 'token-tracking[warehouse]'" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("1m", 60), ("1.5h", 5400), (" 2s ", 2)]
)
def test_durations(text: str, seconds: float):
    assert seconds_of(text, least=0.1, most=86400) == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "not a duration"),
        ("", "not a duration"),
        ("-1s", "not a duration"),
        ("1m30s", "not a duration"),
        ("5 minutes", "not a duration"),
        ("1e3s", "not a duration"),
        ("٣s", "not a duration"),
        ("50ms", "not between 100ms and 24h"),
        ("25h", "not between 100ms and 24h"),
    ],
)
def test_wrong_durations(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        seconds_of(text, least=0.1, most=86400)


def test_a_wrong_duration_is_an_error_of_its_option():
    result = CliRunner().invoke(app, ["refresh", "--every", "5"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--every" in result.output
    assert (
        "'5' is not a duration: write a number and its unit, such as 500ms, 5s or 1m"
        in result.output
    )
