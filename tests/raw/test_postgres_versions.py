"""Labels, verdicts and totals are the same on each PostgreSQL, also for rows of an older one."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support import ROOT
from tests.support.bad_events import GOOD
from tests.support.databases import DEBIAN_15, Database, fresh_database
from tests.support.oracle import ALIASES, OPERATIONS, TOKEN_TYPES
from tests.support.previous import apply_version_before
from tests.support.procedures import BATCH, canonical, each_form, event, send
from tests.support.project import DbtProject
from tests.support.usage import believable_usage
from tests.support.validating import unsuccessful, validated
from tests.support.warehouse import Warehouse
from token_tracking import UsageTracker
from token_tracking.raw.schema import apply_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_tracking.embedded.server import Server

LABELS = (
    "select token_type, operation from token_tracking_raw.usage_events order by idempotency_key"
)
CONFLICTS = "select idempotency_key from token_tracking_raw.usage_event_conflicts order by 1"
# As version 3 cleaned labels: the letter v before PostgreSQL 17, a vertical tab since.
CLEANED = """
    create or replace function token_tracking_raw.cleaned_label(label text) returns text
    language sql immutable as $$ select lower(btrim(label, e' \\t\\n\\r\\f{}') collate "C") $$
"""
OF_15, OF_18, OF_EACH = CLEANED.format("v"), CLEANED.format("\\x0b"), CLEANED.format("\\v")


def at_version_3(database: Database, cleaning: str) -> None:
    """Make the raw schema that of version 3, without rows."""
    execute(database, "drop schema token_tracking_raw cascade")
    apply_version_before(database)
    execute(database, cleaning)


def upgrade(database: Database) -> None:
    with closing(psycopg.connect(database.url)) as connection:
        apply_schema(connection)
        connection.commit()


def execute(database: Database, sql: str) -> None:
    with closing(database.connect()) as connection:
        connection.execute(sql.encode())


@each_form
def test_letters_v_stay_and_vertical_tabs_go(each_emptied: Database, form: Callable[[list], str]):
    given = ["vector_search", "v", "vvision v", "\x0bchat\x0b", "\x0b v\x0b", "Vector_V", "ov\t"]
    labels = ["vector_search", "v", "vvision v", "chat", "v", "vector_v", "ov"]
    events = [event(f"{n}", token_type=one, operation=one) for n, one in enumerate(given)]
    assert send(each_emptied, form(events))[:4] == (7, 0, 0, 0)
    assert each_emptied.rows(LABELS) == [(one, one) for one in labels]
    assert send(each_emptied, form(events))[:4] == (0, 7, 0, 0)


def test_a_vector_search_of_the_library_is_one(each_emptied: Database):
    with UsageTracker(dsn=each_emptied.url) as tracker:
        assert tracker.track_token_usage_sync("a", 1, operation="vector_search", token_type="v")
    assert each_emptied.value("select token_tracking_raw.track_token_usage('a', 1, ' v', 'v ')")
    assert sorted(each_emptied.rows(LABELS)) == [("v", "v"), ("v", "vector_search")]


@each_form
def test_calls_recorded_without_their_v_are_known(
    each_database: Database, form: Callable[[list], str]
):
    """Recorded by 15, sent again to a newer server, then upgraded."""
    labels = [("llm", "vector_search"), ("vector", "chat"), ("v", "Vision"), ("llm", "\x0bchat")]
    events = [event(f"{n}", token_type=a, operation=b) for n, (a, b) in enumerate(labels)]
    others = [
        event("0", operation="search"),
        event("2", token_type="v", operation="vision", tokens=6),
    ]
    at_version_3(each_database, OF_15)
    assert send(each_database, form(events))[0] == 4
    execute(each_database, OF_18)
    assert send(each_database, form([*events[:2], *others]))[2] == 4
    upgrade(each_database)
    # False conflicts, which only the letters v caused, are gone.
    assert each_database.rows(CONFLICTS) == [("0",), ("2",)]
    assert send(each_database, form(events)) == (0, 4, 0, 0, None)
    *counts, problems = send(each_database, form(others))
    assert counts == [0, 0, 2, 0]
    reasons = [problem["reason"].partition(":")[0] for problem in problems]
    assert reasons == ["operation", "tokens"]
    assert each_database.rows(CONFLICTS) == [("0",), ("2",)]


@each_form
def test_labels_that_differ_in_a_v_are_two(each_database: Database, form: Callable[[list], str]):
    """For events recorded since the upgrade, also if there are older rows."""
    at_version_3(each_database, OF_15)
    send(each_database, form([event("old", operation="v")]))
    upgrade(each_database)
    assert send(each_database, form([event("k", operation="ision")]))[0] == 1
    assert send(each_database, form([event("k", operation="vision")]))[2] == 1


def test_labels_without_their_v_mean_what_they_meant():
    with ALIASES.open(newline="") as file:
        aliases = {(kind, alias): label for kind, alias, label in csv.reader(file)}
    meanings = {("token_type", label): label for label in TOKEN_TYPES}
    meanings |= {("operation", label): label for label in OPERATIONS} | aliases
    cut = {
        (kind, alias.strip("v")): label
        for (kind, alias), label in meanings.items()
        if alias != alias.strip("v")
    }
    assert len(cut) == 4
    assert cut.items() <= aliases.items()


def test_a_dump_of_15_comes_to_life_on_18(server: Server, server_15: Server, tmp_path: Path):
    """Rows, totals and retries of what 15 has recorded without its letter v."""
    sent = [
        event("a", operation="vector_search"),
        event("b", token_type="vector", operation="vectorsearch", tokens=7),
        event("c", operation="chat", tokens=11),
    ]
    for source in fresh_database(server_15):
        at_version_3(source, OF_EACH)
        assert send(source, sent)[0] == 3
        assert source.rows(LABELS)[0] == ("llm", "ector_search")
        dump = run_program("pg_dump", source, "--no-owner", "--schema=token_tracking_raw")
        for target in fresh_database(server):
            execute(target, "drop schema token_tracking_raw cascade")
            run_program("psql", target, "-q", "-v", "ON_ERROR_STOP=1", text=dump)
            assert send(target, sent)[2] == 2
            upgrade(target)
            assert send(target, sent) == (0, 3, 0, 0, None)
            assert send(target, canonical(sent)) == (0, 3, 0, 0, None)
            assert target.rows(CONFLICTS) == []
            project = DbtProject(target.env, tmp_path)
            project.must("seed")
            project.must("run")
            Warehouse(target).check()
            assert target.rows(
                "select token_type::text, operation::text, tokens"
                " from token_tracking.daily_token_usage order by tokens"
            ) == [
                ("llm", "vector_search", 5),
                ("embedding", "vector_search", 7),
                ("llm", "chat", 11),
            ]
            assert target.rows("select * from token_tracking.unmapped_labels") == []


def run_program(name: str, database: Database, *words: str, text: str | None = None) -> str:
    return subprocess.run(
        [DEBIAN_15 / name, *words],
        env={**os.environ, **database.env},
        input=text,
        text=True,
        check=True,
        capture_output=True,
    ).stdout


def test_a_warehouse_is_the_same_on_15_and_18(server: Server, server_15: Server, tmp_path: Path):
    """Written by the procedures, built, checked and validated."""
    usage = believable_usage(15, 300)
    events = [
        {
            **GOOD,
            "tenant_id": one.tenant,
            "idempotency_key": one.key,
            "tokens": one.tokens,
            "token_type": one.token_type,
            "operation": one.operation,
            "model": one.model,
            "agent_id": one.agent,
            "occurred_at": one.occurred_at.isoformat(),
        }
        for one in usage["events"]
    ]
    assert "vector_search" in {one["operation"] for one in events}
    found = []
    for each in (server, server_15):
        for database in fresh_database(each):
            warehouse = Warehouse(database)
            assert send(database, events)[3] == 0
            warehouse.insert(voids=usage["voids"], owners=usage["owners"])
            result = DbtProject(database.env, tmp_path / "dbt").must(
                "build", "--exclude", "test_type:unit"
            )
            marts = warehouse.check()
            report = validated(database, tmp_path / "docs")
            found.append((marts, result.statuses, sorted(unsuccessful(report))))
    assert found[0] == found[1]
    marts, statuses, _ = found[0]
    assert len(marts["hourly_token_usage"]) > 100
    assert len(statuses) > 30


# Those of any string constant that every PostgreSQL from 15 on reads alike.
ESCAPES = re.compile(r"\\([btnrf\\']|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})")


def test_no_escape_means_another_character_elsewhere():
    """`\\v` is one; so is any that is not listed: it stands for its letter until it does not."""
    files = subprocess.run(
        ["git", "ls-files", "*.sql", "ingest/*.py", "benchmarks/*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    found = 0
    for file in files:
        if "/versions/00" in file:
            continue
        for constant in re.findall(r"\b[eE]'((?:[^'\\]|\\.|'')*)'", (ROOT / file).read_text()):
            found += 1
            left = ESCAPES.sub("", constant)
            assert "\\" not in left, f"{file}: e'{constant}'"
    assert found >= 3


ODD = [
    "enable_nestloop = off",
    "enable_sort = off",
    "enable_indexscan = off; set enable_bitmapscan = off",
    "enable_nestloop = off; set enable_hashjoin = off; set enable_mergejoin = off",
    "enable_material = off; set enable_hashagg = off; set enable_sort = off",
]


@pytest.mark.parametrize("setting", ODD)
def test_no_call_is_compiled_whatever_the_planner_is_told(server_15: Server, setting: str):
    """Compiling takes half a second a call; the library that does so is never loaded."""
    for database in fresh_database(server_15):
        with closing(database.connect()) as connection:
            assert connection.execute("show jit").fetchone() == ("on",)
            connection.execute(f"set {setting}".encode())
            batch = [event("k"), event("k", tokens=6), event("l", tokens=-1)]
            for number in range(3):
                connection.execute("select token_tracking_raw.track_token_usage('a', 12)")
                connection.execute(BATCH, (json.dumps([*batch, event(f"{number}")]),))
                connection.execute(BATCH, (canonical([event("k"), event(f"c{number}")]),))
                connection.execute("select token_tracking_raw.record_agent_owner('bot', 'a')")
                connection.execute("select token_tracking_raw.void_token_usage('a', '', 'why')")
            maps = Path(f"/proc/{connection.info.backend_pid}/maps").read_text()
            assert "llvmjit" not in maps
        assert database.value("select count(*) from token_tracking_raw.usage_events") == 10
