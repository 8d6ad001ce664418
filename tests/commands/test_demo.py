"""The demo: the same usage every time, sent once, and complete after any interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.client.test_spool import until
from tests.support.commands import COMMAND, run
from token_tracking.demo import tables as demo_tables
from token_tracking.demo.demo import Demo
from token_tracking.demo.usage import DAYS, TENANTS, days_of_usage, ownerships
from token_tracking.embedded.databases import forget_other_databases
from token_tracking.errors import WarehouseError
from token_tracking.refresh import project
from token_tracking.refresh.project import Warehouse

if TYPE_CHECKING:
    from tests.support.databases import Database
    from token_tracking.demo.usage import Day

END = date(2026, 3, 1)
SMALL = 0.02


@pytest.fixture(scope="module")
def days() -> list[Day]:
    return list(days_of_usage(END, seed=1, size=SMALL))


def test_the_story_is_the_same_for_the_same_seed(days):
    assert list(days_of_usage(END, seed=1, size=SMALL)) == days
    assert list(days_of_usage(END, seed=2, size=SMALL)) != days


def test_the_story_holds_what_it_tells(days):
    calls = [event for day in days for event in day.calls]
    assert len(days) == DAYS
    assert 2000 < len(calls) < 4000
    assert all(event["occurred_at"] < datetime(2026, 3, 1, tzinfo=UTC) for event in calls)
    keys = Counter((event["tenant_id"], event["idempotency_key"]) for event in calls)
    assert set(keys.values()) == {1}

    by_tenant = Counter(event["tenant_id"] for event in calls)
    assert by_tenant["atlas-bank"] > 20 * by_tenant["tiny-cafe"] > 0
    assert {event.get("token_type", "llm") for event in calls} >= {"llm", "embedding"}
    by_weekday = Counter(event["occurred_at"].weekday() for event in calls)
    assert by_weekday[2] > 3 * by_weekday[6]

    known = set(keys)
    for day in days:
        known_today = {(event["tenant_id"], event["idempotency_key"]) for event in day.calls}
        for event in [*day.retries, *day.contradictions]:
            assert (event["tenant_id"], event["idempotency_key"]) in known_today
        for event in day.mistakes:
            assert (event["tenant_id"], event["idempotency_key"]) not in known
    assert sum(len(day.retries) for day in days) == pytest.approx(len(calls) * 0.01, rel=0.5)
    late = [
        event
        for day in days
        for event in day.calls
        if event["occurred_at"].date() < day.date - timedelta(days=1)
    ]
    assert late
    assert all(event["metadata"] == {"delivered": "late"} for event in late)
    assert sum(len(day.contradictions) for day in days) > 0
    assert sum(len(day.mistakes) for day in days) > 0
    assert sum(len(day.voided) for day in days) == 40


def test_an_agent_is_sold_in_the_middle():
    sold = [owner for owner in ownerships(END) if owner.agent_id == "support-triage"]
    assert [owner.owner_tenant_id for owner in sold] == ["lunar-labs", "nordlicht-logistik"]
    assert sold[1].valid_from == datetime(2026, 1, 15, tzinfo=UTC)
    users = {tenant.name for tenant in TENANTS if "support-triage" in tenant.agents}
    assert len(users) > 3


def test_a_broken_off_run_is_completed_by_the_next_one(server, tmp_path, database: Database):
    demo = Demo(server, tmp_path / "demo", database=database.env["PGDATABASE"])
    story = demo.prepare(size=SMALL)

    def interrupt(_calls: int, _days: int) -> None:
        seen.append(1)
        if len(seen) == 30:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        demo.send(story, interrupt)
    events = "select count(*) from token_tracking_raw.usage_events"
    before = database.value(events)
    assert isinstance(before, int)
    assert before > 0

    story = demo.prepare(size=7 * SMALL)
    assert (story.size, story.is_sent) == (SMALL, False)
    sent = demo.send(story, lambda _calls, _days: None)
    expected = list(days_of_usage(story.end_date, seed=story.seed, size=SMALL))
    calls = [event for day in expected for event in day.calls]
    assert database.value(events) == len(calls) == before + sent.recorded
    assert demo.prepare().is_sent
    for table, rows in (
        ("usage_event_conflicts", sum(len(day.contradictions) for day in expected)),
        ("usage_event_rejections", sum(len(day.mistakes) for day in expected)),
        ("usage_voids", 40),
        ("agent_owners", 6),
    ):
        assert database.value(f"select count(*) from token_tracking_raw.{table}") == rows, table
    tokens = sum(event["input_tokens"] + event.get("output_tokens", 0) for event in calls)
    assert database.value("select sum(tokens) from token_tracking_raw.usage_events") == tokens


def test_the_whole_demo_and_a_second_run(open_folder: Path):
    words = ("demo", "--folder", open_folder / "tt", "--size", "0.02")
    env = {"COLUMNS": "140", "PGHOST": "/nowhere", "TOKEN_TRACKING_ENABLED": "0"}
    try:
        first = run(*words, env=env)
        second = run(*words, env={"COLUMNS": "140"})
        url = run("db", "url", "--folder", open_folder / "tt", "--database", "demo").out
    finally:
        run("db", "stop", "--folder", open_folder / "tt")
    assert first.code == 0, first.err
    assert "PGHOST, TOKEN_TRACKING_ENABLED" in first.err
    assert "recorded" in first.err
    assert "are green" in first.err
    for said in (
        "Tokens a day, the last week",
        "Tokens a month, by who pays",
        "Who used whose agent",
        "Refused or doubtful",
        "The totals close: raw less voids = sum of days = sum of months",
        "load test, not usage",
        "prototype-x",
        "a negative number",
    ):
        assert said in first.out, said
    assert f'psql "{url.strip()}"' in first.out
    assert (second.code, second.out) == (0, first.out)
    assert "nothing is added" in second.err
    assert "dbt has built its totals of them already" in second.err


def test_no_project_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project, "__file__", str(tmp_path / "site-packages" / "project.py"))
    with pytest.raises(WarehouseError, match="run this in a checkout of the repository"):
        Warehouse.find({}, tmp_path)


def test_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Warehouse.find({}, tmp_path).project
    assert (found / "dbt_project.yml").exists()
    other = tmp_path / "dbt_project.yml"
    other.write_text("name: somebody_elses\n")
    assert Warehouse.find({}, tmp_path).project == found
    other.write_text("name: token_tracking\n")
    assert Warehouse.find({}, tmp_path).project == tmp_path


def test_what_dbt_says_of_a_failure_is_in_the_error(tmp_path, database: Database):
    project = tmp_path / "project"
    (project / "models").mkdir(parents=True)
    (project / "dbt_project.yml").write_text(
        "name: token_tracking\nprofile: token_tracking\n"
        "flags: {send_anonymous_usage_stats: false}\n"
    )
    root = Warehouse.find({}, tmp_path).project
    (project / "profiles.yml").write_bytes((root / "profiles.yml").read_bytes())
    (project / "models" / "broken.sql").write_text("select no_such_column")
    broken = Warehouse(project, database.env, tmp_path / "dbt")
    with pytest.raises(WarehouseError) as caught:
        broken.build()
    assert 'column "no_such_column" does not exist' in "\n".join(caught.value.__notes__)
    assert str(tmp_path / "dbt" / "dbt.log") in str(caught.value)
    before = broken.fingerprint()
    (project / "models" / "broken.sql").write_text("select 1 as n")
    (project / "models" / "models.yml").write_text(
        "models: [{name: broken, columns: [{name: n, data_tests: [not_null]}]}]\n"
    )
    assert broken.fingerprint() != before
    progress: list[tuple[int, int]] = []
    broken.build(lambda done, total: progress.append((done, total)))
    assert progress == [(1, 2), (2, 2)]


def test_totals_that_differ_are_said():
    row = {"raw_tokens": 5, "daily_tokens": 5, "monthly_tokens": 4}
    assert demo_tables.proof([row]) == "The totals differ: raw 5, days 5, months 4 tokens."


def test_settings_that_lead_elsewhere_are_forgotten(monkeypatch):
    monkeypatch.setenv("PGSERVICE", "production")
    monkeypatch.setenv("DBT_SCHEMA", "x")
    assert {"PGSERVICE", "DBT_SCHEMA"} <= set(forget_other_databases())
    assert "PGSERVICE" not in os.environ


def test_ctrl_c_in_the_demo(open_folder: Path):
    command = [*COMMAND, "demo", "--folder", str(open_folder / "tt")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as demo:
        started = open_folder / "tt" / "postgres" / "postmaster.pid"
        until(started.exists, 120)
        time.sleep(1)
        demo.send_signal(signal.SIGINT)
        _, stderr = demo.communicate(timeout=120)
    run("db", "stop", "--folder", open_folder / "tt")
    assert demo.returncode == 130
    assert "Traceback" not in stderr
    assert "Error: interrupted: what is there stays" in stderr
