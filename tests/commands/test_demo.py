"""The demo: the same usage every time, sent once, and complete after any interruption."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from genai_prices import Usage, calc_price

from tests.client.test_spool import until
from tests.support.commands import COMMAND, run
from token_tracking.demo import tables as demo_tables
from token_tracking.demo.demo import Demo
from token_tracking.demo.prices import change_of_price, prices_of_usage
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
    assert demo.price(story)
    assert demo.price(story) is None
    for table, rows in (
        ("model_aliases", 1),
        ("usage_event_conflicts", sum(len(day.contradictions) for day in expected)),
        ("usage_event_rejections", sum(len(day.mistakes) for day in expected)),
        ("usage_voids", 40),
        ("agent_owners", 6),
    ):
        assert database.value(f"select count(*) from token_tracking_raw.{table}") == rows, table
    tokens = sum(event["input_tokens"] + event.get("output_tokens", 0) for event in calls)
    assert database.value("select sum(tokens) from token_tracking_raw.usage_events") == tokens


def costs_of(days: list[Day], change_date: date) -> dict[str, Decimal | None]:
    """Return what each model's calls cost by genai-prices itself; None where it has no price."""
    voided = {(one.tenant_id, one.idempotency_key) for day in days for one in day.voided}
    found: dict[str, Decimal | None] = {}
    for event in (event for day in days for event in day.calls):
        if (event["tenant_id"], event["idempotency_key"]) in voided:
            continue
        usage = Usage(
            input_tokens=event["input_tokens"],
            cache_read_tokens=event.get("cache_read_tokens"),
            output_tokens=event.get("output_tokens"),
        )
        model, at = event["model"], event["occurred_at"]
        try:
            price = calc_price(
                usage,
                model_ref=model,
                provider_id=event["provider"],
                genai_request_timestamp=at,
            ).total_price
        except LookupError:
            found[model] = None
            continue
        factor = Decimal("0.5") if model == "gpt-4o" and at.date() >= change_date else 1
        found[model] = (found.get(model) or Decimal(0)) + price * factor
    return found


def test_a_price_changes_in_the_middle_of_a_month():
    """With at least a week after it."""
    assert change_of_price(date(2026, 3, 22)) == date(2026, 3, 15)
    assert change_of_price(date(2026, 3, 21)) == date(2026, 2, 15)
    assert change_of_price(date(2026, 1, 3)) == date(2025, 12, 15)
    prices = prices_of_usage(END).prices
    by_time = Counter(price.valid_from for price in prices if price.model == "gpt-4o")
    assert by_time == dict.fromkeys(
        [datetime(2025, 11, 30, tzinfo=UTC), datetime(2026, 2, 15, tzinfo=UTC)], 6
    )
    assert {price.model for price in prices} == {
        *("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-0"),
        *("text-embedding-3-small", "text-embedding-3-large"),
    }


def test_small_amounts_are_not_shown_as_0():
    week: dict[str, object] = {"week_before": Decimal(0), "week_after": Decimal("0.006")}
    rows = [
        {"model": "m", "tokens": 9, "unpriced_tokens": 0, "amount": Decimal("0.004"), **week},
        {"model": "n", "tokens": 7, "unpriced_tokens": 7, "amount": Decimal(0), **week},
    ]
    table = demo_tables.costs(rows, "m", END)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells[0] == ("m", "9", "0", "<0.01", "0.00", "<0.01")
    assert cells[1] == ("n", "7", "7", "", "", "")


def test_the_whole_demo_and_a_second_run(open_folder: Path):
    words = ("demo", "--folder", open_folder / "tt", "--size", "0.02")
    env = {"COLUMNS": "140", "PGHOST": "/nowhere", "TOKEN_TRACKING_ENABLED": "0"}
    try:
        first = run(*words, env=env)
        second = run(*words, env={"COLUMNS": "140"})
        url = run("db", "url", "--folder", open_folder / "tt", "--database", "demo").out
        with closing(psycopg.connect(url.strip())) as connection:
            found = {
                model: sums
                for model, *sums in connection.execute(
                    "select model, sum(cost), sum(unpriced_tokens)"
                    " from token_tracking.daily_token_cost where is_billed group by model"
                )
            }
            state = "select end_date, seed, size from token_tracking_demo.state"
            [(end, seed, size)] = connection.execute(state).fetchall()
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
    costs = costs_of(list(days_of_usage(end, seed=seed, size=size)), change_of_price(end))
    [tuned] = [model for model, cost in costs.items() if cost is None]
    assert {model: cost for model, (cost, _) in found.items() if model != tuned} == {
        model: cost for model, cost in costs.items() if cost is not None
    }
    assert {model for model, (_, unpriced) in found.items() if unpriced} == {tuned}
    for model in ("gpt-4o", "claude-sonnet-4"):
        assert re.search(rf" {model} .* {costs[model]:,.2f} ", first.out), model
    assert re.search(rf" {tuned} +([\d,]+) +\1 +\n", first.out)
    assert f"gpt-4o at half the price from {change_of_price(end)} on" in first.out
    assert "gpt-4o costs half of that" in first.err
    assert "gpt-4o costs half of that" not in second.err
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
