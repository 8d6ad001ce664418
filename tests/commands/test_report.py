"""The usage report: its figures against an independent count, its page in a real browser."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections import defaultdict
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from io import StringIO
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from tests.support.chromium import PROGRAM, chromium
from tests.support.cost_oracle import Prices, costs, savings
from tests.support.databases import fresh_database
from tests.support.oracle import Raw, Settings
from tests.support.project import DbtProject
from tests.support.warehouse import Event, Warehouse
from token_tracking import cli
from token_tracking.report import charts, tables
from token_tracking.report.charts import cost_series, series_of
from token_tracking.report.costs import Cost, CostOfDay, exact_sum
from token_tracking.report.figures import Day, Part, Period, builds_of, read_figures
from token_tracking.report.page import page_of
from token_tracking.report.reading import Reading
from token_tracking.report.tables import (
    AGENT_USES_SHOWN,
    SERIES_SHOWN,
    TENANTS_SHOWN,
    UNPRICED_SHOWN,
    Money,
)
from token_tracking.report.top import top_of
from token_tracking.report.trust import checks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.chromium import Browser

ZONE = "Asia/Kolkata"
MARCH, FEBRUARY = date(2026, 3, 1), date(2026, 2, 1)
HOSTILE = "<script>alert(1)</script>"
HOSTILE_MODEL = "</script><img src=x onerror=alert(2)>"
HOSTILE_AGENT = "\"'><b onmouseover=alert(3)>\u202e&amp;"
LONG = "a-tenant-with-a-very-long-name-" * 8
PAGES = ("empty", "one", "many")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def report(env: dict[str, str], *words: str | Path) -> Ended:
    """Run the command in this process, which has imported the charts library already."""
    out, err = StringIO(), StringIO()
    with (
        patch.dict(os.environ, {**env, "COLUMNS": "400"}),
        patch.object(sys, "argv", ["token-tracking", "report", *map(str, words)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@dataclass
class Table:
    """A table as shown to a reader: texts by row."""

    caption: str = ""
    head: list[str] = field(default_factory=list)
    body: list[list[str]] = field(default_factory=list)
    foot: list[list[str]] = field(default_factory=list)
    titles: list[list[str]] = field(default_factory=list)  # of the cells of body and foot

    def amounts(self, column: str) -> dict[str, Decimal]:
        """Return a column's exact amounts, which its titles have, where there are any."""
        place = self.head.index(column)
        return {
            row[0]: Decimal(titles[place].split()[0])
            for row, titles in zip([*self.body, *self.foot], self.titles, strict=True)
            if titles[place]
        }

    def numbers(self, column: str) -> dict[str, int]:
        """Return a column by the text of the first one."""
        place = self.head.index(column)
        return {row[0]: int(row[place].replace(",", "")) for row in [*self.body, *self.foot]}


class Tables(HTMLParser):
    """Reads the tables, and the text, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.text = ""
        self._part = ""
        self._cell: list[str] | None = None
        self.attributes: list[tuple[str, str]] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        table = self.tables[-1] if self.tables else Table()
        match tag:
            case "table":
                self.tables.append(Table())
            case "thead" | "tbody" | "tfoot":
                self._part = tag
            case "tr" if self._part != "thead":
                (table.body if self._part == "tbody" else table.foot).append([])
                table.titles.append([])
            case "th" | "td" | "caption":
                self._cell = []
                if tag != "caption" and self._part != "thead":
                    table.titles[-1].append(dict(attrs).get("title") or "")
            case "script" | "style":
                self._hidden = True
            case _:
                pass

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style"}:
            self._hidden = False
        if self._cell is None or tag not in {"th", "td", "caption"}:
            return
        text, self._cell = "".join(self._cell).strip(), None
        table = self.tables[-1]
        if tag == "caption":
            table.caption = text
        elif self._part == "thead":
            table.head.append(text)
        else:
            (table.body if self._part == "tbody" else table.foot)[-1].append(text)

    def __getitem__(self, caption: str) -> Table:
        [table] = [table for table in self.tables if table.caption == caption]
        return table


@dataclass(frozen=True)
class Built:
    """A database that was built three times, and the report of each time."""

    warehouse: Warehouse
    project: DbtProject
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return self.warehouse.database.env

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.html"

    def page(self, *words: str) -> Tables:
        """Write another report and read it."""
        out = self.folder / "other.html"
        ended = report(self.env, "--out", out, *words)
        assert ended.code == 0, ended.err
        return Tables(out.read_text("utf-8"))


def one_tenant() -> list[Event]:
    noon = datetime(2026, 3, 10, 12, tzinfo=UTC)
    return [
        Event("one-1", noon, "acme", 700, input_tokens=500, output_tokens=200),
        Event("one-2", noon + timedelta(days=1), "acme", 300, operation="chat", model=None),
        Event("one-3", noon - timedelta(days=30), "acme", 400),
        Event("one-4", noon - timedelta(days=15), "acme", 50),
        Event("none", noon - timedelta(days=90), "nil", 0),
        Event("void-1", noon, "acme", 5000),
    ]


def many_tenants() -> tuple[list[Event], list[tuple[str, datetime, str | None]]]:
    dice = random.Random(7)
    tenants = [f"tenant-{number:03}" for number in range(497)] + [HOSTILE, LONG]
    agents = [f"agent-{number}" for number in range(70)] + [HOSTILE_AGENT, "nobodys"]
    first = datetime(2025, 1, 1, tzinfo=UTC)
    owners = [(agent, first, dice.choice(tenants)) for agent in agents[1:-1]]
    owners.append((agents[0], first, LONG))
    operations = ("query", "chat", "summarize", "batch", "extraction", "internal", "generation")
    events = []
    for number in range(3000):
        # Around both ends of March, too, in a zone whose day begins at 18:30 UTC.
        at = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(minutes=dice.randrange(60 * 24 * 75))
        if number < len(tenants):
            at = datetime(2026, 3, 1 + number % 31, 9, tzinfo=UTC)
        inputs = dice.randrange(5000)
        events.append(
            Event(
                f"late-{number}" if number % 100 == 0 else f"key-{number}",
                at,
                tenants[number] if number < len(tenants) else dice.choice(tenants),
                inputs + 300,
                token_type="video" if number % 97 == 0 else "llm",
                operation=dice.choice(operations),
                model=dice.choice([f"model-{n}" for n in range(9)] + [HOSTILE_MODEL, ""]),
                agent=dice.choice(agents) if number >= len(tenants) and number % 3 == 0 else None,
                input_tokens=inputs,
                output_tokens=200,
            )
        )
    events += [
        Event("rich", datetime(2026, 3, 5, tzinfo=UTC), HOSTILE, 900_000, model=HOSTILE_MODEL),
        Event("long", datetime(2026, 3, 6, tzinfo=UTC), LONG, 800_000, agent=HOSTILE_AGENT),
    ]
    events += [
        Event(f"old-{n}", datetime(2025, 1 + n, 20, tzinfo=UTC), "tenant-001", 10**6 * n + 1)
        for n in range(10)
    ]
    return events, owners


def many_prices() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return prices of half of the models, in two currencies, and who pays in the other one."""
    kinds = ("input", "cache_read", "cache_write", "cache_write_long", "output", "reasoning")
    long_ago, amid = "2025-01-01T00:00Z", "2026-03-15T06:00Z"
    prices = [
        (f"model-{n}", kind, price_list, currency, long_ago, amount)
        for n, amounts in enumerate(
            [
                (2.5, 0.123456789012, 3.75, 6, 10, 12),
                (0.15, 0.075, None, None, 0.6, 0.6),
                (0.000001,) * 6,
                (None, 0.3, None, None, 15, 15),
                (0,) * 6,
            ]
        )
        for kind, amount in zip(kinds, amounts, strict=True)
        for price_list, currency in (("list", "USD"), *([("euros", "EUR")] if n < 2 else []))
        if amount is not None
    ]
    prices.append(("model-1", "input", "list", "USD", amid, 1.5))
    names = ("model", "token_kind", "price_list", "currency", "valid_from", "amount")
    assigned = [*(f"tenant-{n:03}" for n in range(100)), LONG]
    return (
        [{"provider": "openai", **dict(zip(names, price, strict=True))} for price in prices],
        [
            {"tenant_id": tenant, "price_list": "euros", "valid_from": "2026-02-10T00:00Z"}
            for tenant in assigned
        ],
    )


@pytest.fixture(scope="module")
def built(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("report")
    with contextmanager(fresh_database)(server) as database:
        warehouse = Warehouse(database, Settings(billing_timezone=ZONE))
        project = DbtProject(database.env, folder / "dbt")
        result = Built(warehouse, project, folder)

        def build(name: str) -> None:
            project.must("run", billing_timezone=ZONE)
            ended = report(database.env, "--out", result.file(name), *_month_of(name))
            assert ended.code == 0, ended.err

        build("empty")
        warehouse.insert(one_tenant(), voids=[("acme", "void-1")])
        build("one")
        events, owners = many_tenants()
        warehouse.insert(events, owners=owners)
        prices, assigned = many_prices()
        warehouse.record("record_model_prices", *prices)
        warehouse.record("record_tenant_price_lists", *assigned)
        with closing(warehouse.connect()) as connection:
            # As if they had arrived at once, except a few.
            connection.execute(
                "update token_tracking_raw.usage_events set recorded_at = occurred_at"
                " where idempotency_key not like 'late-%'"
            )
            connection.execute(
                "select token_tracking_raw.track_token_usage_batch(%s)",
                (
                    json.dumps(
                        [
                            {
                                "tenant_id": "acme",
                                "idempotency_key": "one-1",
                                "tokens": 1,
                                "occurred_at": "2026-03-10T12:00:00Z",
                            },
                            {"tenant_id": "acme", "idempotency_key": "bad", "tokens": -1},
                        ]
                    ),
                ),
            )
            connection.execute(
                "update token_tracking_raw.usage_event_rejections set recorded_at = '2026-03-31'"
            )
        build("many")
        yield result


def _month_of(name: str) -> tuple[str, ...]:
    return () if name == "empty" else ("--month", "2026-03")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with chromium() as running:
        yield running


def sums(rows: list[tuple[Any, ...]], name: int, month: date = MARCH) -> dict[str, int]:
    """Sum up the tokens of a month of the daily mart by one of its columns."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        if row[0].replace(day=1) == month:
            found[str(row[name])] += row[5]
    return dict(found)


@dataclass
class Expected:
    """What billed tokens cost, by the oracle."""

    tokens: int = 0
    unpriced: int = 0
    amounts: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))


Billed = list[tuple[Any, ...]]
COST_PLACES = {"usage_date": 0, "tenant_id": 1, "operation": 3, "model": 5, "token_kind": 6}


@pytest.fixture(scope="module")
def billed(built: Built) -> Billed:
    """The oracle's costs of March, by the list that each payer pays by."""
    with closing(built.warehouse.connect()) as connection:
        raw, prices = Raw.read(connection), Prices.read(connection)
    rows = costs(raw, prices, built.warehouse.settings)
    return [row for row in rows if row[9] and row[0].replace(day=1) == MARCH]  # type: ignore[attr-defined]


def expected_costs(billed: Billed, by: str | None = None) -> dict[str, Expected]:
    """Sum up the oracle's costs by a column, or all of them."""
    found: dict[str, Expected] = defaultdict(Expected)
    for row in billed:
        sums = found["Total" if by is None else str(row[COST_PLACES[by]])]
        currency, tokens, cost, unpriced = row[10:]
        sums.tokens += int(tokens)
        sums.unpriced += int(unpriced)
        if currency is not None:
            sums.amounts[currency] += cost
    return found


def greatest_first(found: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(found.items(), key=lambda item: -item[1])


def test_the_figures_equal_an_independent_count(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    daily = built.warehouse.expected()["daily_token_usage"]
    total = sum(sums(daily, 0).values())
    assert total > 10**6
    calls = sum(row[8] for row in daily if row[0].replace(day=1) == MARCH)

    days = page["Day by day"]
    expected_days = sums(daily, 0)
    assert len(days.body) == 31
    assert {row[0][:10]: int(row[1].replace(",", "")) for row in days.body} == {
        f"{MARCH + timedelta(days=n)}": expected_days.get(str(MARCH + timedelta(days=n)), 0)
        for n in range(31)
    }
    assert days.numbers("Tokens")["Total"] == total
    assert days.numbers("Calls")["Total"] == calls

    for column, title in ((3, "operation"), (4, "model")):
        found, before = sums(daily, column), sums(daily, column, FEBRUARY)
        table = page[f"Tokens by {title}"]
        names = {name or "(empty)": name for name in found}
        assert [row[0] for row in table.body] == [n or "(empty)" for n, _ in greatest_first(found)]
        for name, tokens in table.numbers("Tokens").items():
            assert tokens == (total if name == "Total" else found[names[name]])
        for name, tokens in table.numbers("Tokens before").items():
            was = sum(before.values()) if name == "Total" else before.get(names[name], 0)
            assert tokens == was
        by_day = page[f"Tokens by day and {title}"]
        assert by_day.numbers("Total")["Total"] == total
        assert {row[0]: int(row[-1].replace(",", "")) for row in by_day.body} == {
            row[0][:10]: int(row[1].replace(",", "")) for row in days.body
        }
        for name in by_day.head[1:-1]:
            if not name.endswith(" others"):
                assert by_day.numbers(name)["Total"] == found[names[name]], name


def test_the_first_tenants_and_the_others_close(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    daily = built.warehouse.expected()["daily_token_usage"]
    found = sums(daily, 1)
    before = sums(daily, 1, FEBRUARY)
    every = {*found, *before}
    ordered = sorted(every, key=lambda name: (-found.get(name, 0), -before.get(name, 0), name))
    assert len(every) == 500
    table = page["Tokens by who pays"]
    assert [row[0] for row in table.body] == ordered[:TENANTS_SHOWN]
    assert {HOSTILE, LONG} <= {row[0] for row in table.body}
    others = table.numbers("Tokens")["475 others"]
    assert others == sum(found.get(name, 0) for name in ordered[TENANTS_SHOWN:])
    shown = sum(tokens for name, tokens in table.numbers("Tokens").items() if name != "Total")
    assert shown == table.numbers("Tokens")["Total"] == sum(found.values())


def test_who_used_whose_agent(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    uses: dict[tuple[str, str, str], int] = defaultdict(int)
    for day, payer, requester, agent, _, tokens, _ in built.warehouse.expected()[
        "daily_agent_token_usage"
    ]:
        if day.replace(day=1) == MARCH:
            uses[agent, requester, payer] += tokens
    table = page["Who used whose agent"]
    assert len(uses) > len(table.body) == AGENT_USES_SHOWN
    for agent, requester, payer, why, tokens, _ in table.body:
        assert int(tokens.replace(",", "")) == uses[agent, requester, payer]
        assert (why == "its owner pays") == (agent != "nobodys")
    assert HOSTILE_AGENT in {row[0] for row in table.body}
    feet = table.numbers("Tokens")
    assert feet["All agents"] == sum(uses.values())
    assert feet["All agents"] + feet["Without an agent"] == feet["Total"]
    for_others = sum(tokens for (_, requester, payer), tokens in uses.items() if requester != payer)
    assert f"{for_others:,} tokens were used through an agent of another tenant" in page.text


def test_month_against_month(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    months: dict[str, int] = defaultdict(int)
    for row in built.warehouse.expected()["monthly_token_usage"]:
        months[f"{row[0]:%Y-%m}"] += row[5]
    table = page["Month against month"]
    # Thirteen of them until March, also those without usage; April comes later.
    assert [row[0] for row in table.body][:3] == ["2026-03", "2026-02", "2026-01"]
    assert len(table.body) == 13
    assert table.body[-1][0] == "2025-03"
    assert table.numbers("Tokens") == {row[0]: months.get(row[0], 0) for row in table.body}
    assert table.numbers("Tokens")["2026-01"] == months.get("2026-01", 0)
    change = months["2026-03"] / months["2026-02"] - 1
    assert table.body[0][-1] == f"{change:+,.1%}".replace("-", "\N{MINUS SIGN}")
    assert [row[-1] for row in table.body if row[0] == "2025-12"] == [""]


def test_costs_equal_an_independent_count(built: Built, billed: Billed):
    """By day, operation, model, tenant and kind, to the last digit, in each currency."""
    page = Tables(built.file("many").read_text("utf-8"))
    whole = expected_costs(billed)["Total"]
    assert set(whole.amounts) == {"EUR", "USD"}
    assert 0 < whole.unpriced < whole.tokens
    for caption, by in (
        ("Day by day", "usage_date"),
        ("Tokens by operation", "operation"),
        ("Tokens by model", "model"),
        ("Tokens by who pays", "tenant_id"),
        ("Cost by kind of token", "token_kind"),
    ):
        table, found = page[caption], expected_costs(billed, by)
        names = dict(zip(table.numbers("Tokens"), [row[0] for row in table.body], strict=False))
        for currency in ("EUR", "USD"):
            for label, amount in table.amounts(f"Cost, {currency}").items():
                if label.endswith(" others"):
                    first = {row[0] for row in table.body}
                    others = [sums for name, sums in found.items() if name not in first]
                    assert amount == sum(sums.amounts[currency] for sums in others)
                elif label == "Total":
                    assert amount == whole.amounts[currency], caption
                else:
                    assert amount == found[key_of(label)].amounts[currency], (caption, label)
            assert len(table.amounts(f"Cost, {currency}")) > 2, caption
        for label, tokens in table.numbers("Without price").items():
            if label in names and label != "Total":
                assert tokens == found[key_of(label)].unpriced, (caption, label)
        assert table.numbers("Without price")["Total"] == whole.unpriced
    for currency in ("EUR", "USD"):
        by_day = page[f"Cost by day and model, {currency}"]
        assert by_day.amounts("Total")["Total"] == whole.amounts[currency]
        models = expected_costs(billed, "model")
        for model in by_day.head[1:-1]:
            assert by_day.amounts(model)["Total"] == models[key_of(model)].amounts[currency]
        # By the day of the change of a price, too.
        assert {day: amount for day, amount in by_day.amounts("Total").items() if amount} == {
            day: sums.amounts[currency]
            for day, sums in [
                *expected_costs(billed, "usage_date").items(),
                ("Total", whole),
            ]
            if sums.amounts[currency]
        }


def key_of(label: str) -> str:
    """Return the key in the mart of a row's heading."""
    kinds = {
        "Input, not cached": "input",
        "Read from cache": "cache_read",
        "Written to cache": "cache_write",
        "Written to cache, long": "cache_write_long",
        "Output": "output",
        "Reasoning": "reasoning",
        "Neither input nor output": "unsplit",
        "(empty)": "",
    }
    is_day = re.fullmatch(r"\d{4}-\d\d-\d\d \w{3}", label)
    return label[:10] if is_day else kinds.get(label, label)


def test_months_have_their_costs(built: Built, billed: Billed):
    table = Tables(built.file("many").read_text("utf-8"))["Month against month"]
    whole = expected_costs(billed)["Total"]
    for currency in ("EUR", "USD"):
        amounts = table.amounts(f"Cost, {currency}")
        assert amounts["2026-03"] == whole.amounts[currency]
        assert set(amounts) == {"2026-03", "2026-02"}
    unpriced = table.numbers("Without price")
    assert unpriced["2026-03"] == whole.unpriced
    # Nothing of it has a price: the cell is empty, and the tokens stand beside it.
    assert unpriced["2025-10"] == table.numbers("Tokens")["2025-10"] == 9_000_001


def test_a_free_model_costs_0_and_one_without_price_nothing(built: Built):
    table = Tables(built.file("many").read_text("utf-8"))["Tokens by model"]
    shown = {row[0]: row[table.head.index("Cost, USD")] for row in table.body}
    assert shown["model-4"] == "0.00"
    assert shown["model-2"] == "<0.01"
    assert 0 < table.amounts("Cost, USD")["model-2"] < Decimal("0.001")
    assert shown["model-5"] == shown["gpt-4o"] == ""
    assert table.numbers("Without price")["model-5"] == table.numbers("Tokens")["model-5"]


def test_tokens_without_a_price_stand_beside_the_cost(built: Built, billed: Billed):
    page = Tables(built.file("many").read_text("utf-8"))
    whole = expected_costs(billed)["Total"]
    assert f"{whole.unpriced:,} of {whole.tokens:,} tokens have no price" in page.text
    assert "token-tracking prices suggest" in page.text
    headline = " ".join(page.text.split("Tokens without a price")[1].split())
    assert headline.startswith(f"{whole.unpriced:,} in no amount: which")
    lacking: dict[tuple[str, ...], int] = defaultdict(int)
    for row in billed:
        if row[10] is None:
            lacking[row[5] or "(empty)", row[4], row[6], row[7]] += row[11]
    table = page["Tokens without a price"]
    assert len(lacking) > len(table.body) == UNPRICED_SHOWN
    for *names, tokens in table.body:
        assert int(tokens.replace(",", "")) == lacking[tuple(names)]
    assert table.numbers("Tokens")["Total"] == whole.unpriced

    none = Tables(built.file("one").read_text("utf-8"))
    said = " ".join(none.text.split())
    assert "Cost Not known no token has a price Tokens without a price 1,000" in said
    assert "Saved by caches Not known" in said
    assert "token-tracking prices import --apply records public prices" in said
    assert none["Day by day"].head[:4] == ["Day", "Tokens", "Without price", "Input"]
    assert none["Tokens without a price"].numbers("Tokens")["Total"] == 1000


def test_what_caches_saved_and_where_that_is_not_known(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    with closing(built.warehouse.connect()) as connection:
        raw, prices = Raw.read(connection), Prices.read(connection)
    saved: dict[str | None, list[Any]] = defaultdict(lambda: [0, Decimal(0)])
    for row in savings(raw, prices, built.warehouse.settings):
        if row[8] and row[0].replace(day=1) == MARCH:  # type: ignore[attr-defined]
            saved[row[9]][0] += row[10]  # type: ignore[index]
            saved[row[9]][1] += row[11]  # type: ignore[index]
    assert set(saved) == {"EUR", "USD", None}
    titles = {value for name, value in page.attributes if name == "title"}
    for currency in ("EUR", "USD"):
        assert f"{saved[currency][1].normalize():f} {currency}" in titles
    cached = sum(int(tokens) for tokens, _ in saved.values())
    unknown = int(saved[None][0])
    text = " ".join(page.text.split())
    assert f"not known for {unknown:,} of {cached:,} cached tokens" in text
    assert f"What {unknown:,} tokens read from a cache saved is not known" in text


def test_models_beyond_the_series_are_one_of_the_chart_of_costs():
    """With the colours that the models have in the chart of tokens."""
    day = Day(day=MARCH)
    names = [f"model-{n}" for n in range(9)]
    cells = [CostOfDay(MARCH, name, "USD", Decimal(9 - n)) for n, name in enumerate(names)]
    top = top_of(names, SERIES_SHOWN)
    table = tables.cost_by_day("Costs", "USD", top, cells, [day])
    assert [column.title for column in table.columns][-2:] == ["3 others", "Total"]
    assert table.rows[0][-2:] == [Money(Decimal(3 + 2 + 1), "USD"), Money(Decimal(45), "USD")]
    by_tokens = [Part(name, 9, 1, 0) for name in reversed(names)]
    series = cost_series(top, by_tokens)
    assert len({one.colour for one in series}) == len(series) == SERIES_SHOWN + 1
    known = {one.name: one.colour for one in series_of(by_tokens)}
    shared = [one for one in series if one.name in known and "others" not in one.name]
    assert len(shared) == 3
    assert all(one.colour == known[one.name] for one in shared)
    spec = charts.cost_by_day("Costs", "USD", series, top, cells, [day])
    told = [(bar["name"], bar["told"]) for bar in spec["data"]["values"]]  # type: ignore[index]
    assert told[-1] == ("3 others", "6 USD")


def test_digits_are_kept_beyond_those_of_the_default_context():
    amounts = [Decimal("123456789.000000000000000000000001"), Decimal("0.000000000000000000000001")]
    total = Cost.sum_of(Cost(1, 0, {"USD": amount}) for amount in amounts).amounts["USD"]
    assert Money(total, "USD").exact == "123456789.000000000000000000000002 USD"
    assert exact_sum(amounts) == total


def test_what_does_not_count_is_told(built: Built):
    page = Tables(built.file("many").read_text("utf-8"))
    daily = built.warehouse.expected()["daily_token_usage"]
    unknown = [r for r in daily if r[0].replace(day=1) == MARCH and "unknown" in (r[2], r[3])]
    assert unknown
    tokens, calls = sum(row[5] for row in unknown), sum(row[8] for row in unknown)
    late = built.warehouse.rows(
        "select count(*) from token_tracking_raw.usage_events where idempotency_key like 'late-%'"
        f" and (occurred_at at time zone '{ZONE}')::date between '2026-03-01' and '2026-03-31'"
    )[0][0]
    assert late
    for said in (
        "1 payload came under 1 key that another payload had been recorded with",
        "1 payload that arrived in the month broke a rule",
        "1 call of the month with 5,000 tokens were voided",
        f"{calls} calls of the month with {tokens:,} tokens count as unknown type or operation",
        "went through 1 agent that nobody owned at that time",
        f"{late} calls arrived a day or more after it happened",
        "Nothing was recorded since.",
        f"({ZONE})",
    ):
        assert said in page.text, said
    [reason] = page["Why payloads were refused"].body
    assert reason[0].startswith("tokens: a negative number")
    assert page["Labels that nobody knows, over all time"].body[0][0] == "token_type video"
    assert page["Agents without owner"].body[0][0] == "nobodys"


def test_the_totals_are_proved_by_what_the_build_saw(built: Built):
    proved = re.compile(
        r"Each of the 31 days was counted again .*: ([\d,]+) tokens in .* both sides"
    )
    before = built.page("--month", "2026-03")
    found = proved.search(before.text)
    assert found
    assert int(found[1].replace(",", "")) == before["Day by day"].numbers("Tokens")["Total"]
    try:
        # The build does not include what arrived since: an event, and a void of a counted one.
        built.warehouse.insert(
            [Event("new", datetime(2026, 3, 9, tzinfo=UTC), "acme", 77)], voids=[("acme", "one-1")]
        )
        page = built.page("--month", "2026-03")
        again = proved.search(page.text)
        assert again
        assert again[0] == found[0]
        assert "1 event and 1 correction (voids, owners of agents) were recorded" in page.text

        # A total that somebody changed is.
        change(built, "update token_tracking.daily_token_usage set tokens = tokens + 1")
        page = built.page("--month", "2026-03")
        assert f"31 days of 31 differ, for {tenants_of_march(built)} tenants" in page.text
        assert "The month has" in page.text
        assert "✗ wrong" in page.text
        assert re.search(r"Equal to the raw events\?\s+✗ No", page.text)
    finally:
        change(
            built,
            "update token_tracking.daily_token_usage set tokens = tokens - 1",
            "delete from token_tracking_raw.usage_events where idempotency_key = 'new'",
            "delete from token_tracking_raw.usage_voids where idempotency_key = 'one-1'",
        )


def tenants_of_march(built: Built) -> int:
    [(number,)] = built.warehouse.rows(
        "select count(distinct tenant_id) from token_tracking.monthly_token_usage"
        " where usage_month = '2026-03-01'"
    )
    assert number > 400
    return number


def one_row(tenant: str, change: str) -> list[str]:
    """Return statements that change the tenant's first row of March, and its month's."""
    return [
        f"update token_tracking.{mart} set tokens = tokens {change} where ({key}) ="
        f" (select {key} from token_tracking.{mart} where tenant_id = '{tenant}'"
        f" and {period} >= '2026-03-01' order by {key} limit 1)"
        for mart, period in (
            ("daily_token_usage", "usage_date"),
            ("monthly_token_usage", "usage_month"),
        )
        for key in [f"{period}, tenant_id, token_type, operation, model"]
    ]


def test_tokens_that_moved_to_another_tenant_are_found(built: Built):
    moved = [*one_row("tenant-000", "- 50"), *one_row("tenant-031", "+ 50")]
    back = [*one_row("tenant-000", "+ 50"), *one_row("tenant-031", "- 50")]
    before = built.page("--month", "2026-03")
    totals = before["Day by day"].numbers("Tokens")["Total"]
    try:
        change(built, *moved)
        page = built.page("--month", "2026-03")
        assert re.search(r"Equal to the raw events\?\s+✗ No", page.text)
        assert re.search(r"[12] days? of 31 differs?, for 2 tenants: ", page.text)
        assert re.search(r"The month equals the sum of its days\s+✓ in order", page.text)
        mine = built.page("--month", "2026-03", "--tenant", "tenant-000").text
        assert re.search(r"Equal to the raw events\?\s+✗ No", mine)
        assert re.search(r"1 day of \d+ differs: ", mine)
        other = built.page("--month", "2026-03", "--tenant", "tenant-002").text
        assert re.search(r"Equal to the raw events\?\s+✓ Yes", other)

        # The month alone: the sum over all tenants is right.
        change(built, back[0], back[2])
        page = built.page("--month", "2026-03")
        assert re.search(r"The month equals the sum of its days\s+✗ wrong", page.text)
        assert f"2 of {tenants_of_march(built)} tenants' months differ" in page.text
        assert f"The month has {totals:,} tokens" in page.text
    finally:
        change(built, *moved[0::2], *back)
    # The page tells the minute of its reading.
    again, first = (
        re.sub(r"\d\d-\d\d \d\d:\d\d", "", page.text)
        for page in (built.page("--month", "2026-03"), before)
    )
    assert again == first


@pytest.mark.parametrize("table", ["daily_token_usage", "monthly_token_usage"])
def test_what_is_wrong_tells_a_tenant_only_its_own_numbers(built: Built, table: str):
    [(tokens, calls)] = built.warehouse.rows(
        "select sum(tokens)::bigint, sum(event_count)::bigint from token_tracking.daily_token_usage"
        " where usage_date >= '2026-03-01' and usage_date < '2026-04-01'"
    )
    [(rows,)] = built.warehouse.rows(
        f"select count(*) from token_tracking.{table}"
        " where usage_date >= '2026-03-01' and usage_date < '2026-04-01'".replace(
            "usage_date", "usage_month" if table.startswith("month") else "usage_date"
        )
    )
    try:
        built.warehouse.insert([Event("new", datetime(2026, 3, 9, tzinfo=UTC), "tenant-001", 77)])
        change(built, f"update token_tracking.{table} set tokens = tokens + 1")
        page = built.page("--tenant", LONG, "--month", "2026-03")
    finally:
        change(
            built,
            f"update token_tracking.{table} set tokens = tokens - 1",
            "delete from token_tracking_raw.usage_events where idempotency_key = 'new'",
        )
    assert "✗ wrong" in page.text
    for number in (tokens, tokens + rows, calls):
        assert f"{number:,}" not in page.text
    assert str(tenants_of_march(built)) not in page.text
    assert "1 event " not in page.text.split("Last build")[1].split("Last validation")[0]
    assert "The next build counts what came since; daily_token_usage_now already does." in page.text


def change(built: Built, *statements: str) -> None:
    with closing(built.warehouse.connect()) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def test_all_figures_are_of_one_moment(built: Built):
    read, more = Reading.rows, "update token_tracking.{} set tokens = tokens {} 1"
    asked: list[str] = []

    def rows(reading: Reading, query: str, *rest: Any, **options: Any) -> Any:
        found = read(reading, query, *rest, **options)
        asked.append(query)
        if query == "days":
            change(
                built, *(more.format(f"{mart}_token_usage", "+") for mart in ("daily", "monthly"))
            )
        return found

    try:
        with patch.object(Reading, "rows", rows):
            page = built.page("--month", "2026-03")
    finally:
        change(built, *(more.format(f"{mart}_token_usage", "-") for mart in ("daily", "monthly")))
    assert asked.index("days") < asked.index("by") < asked.index("days_against_raw")
    totals = [
        page[f"Tokens by {what}"].numbers("Tokens")["Total"] for what in ("model", "operation")
    ]
    assert totals == [page["Day by day"].numbers("Tokens")["Total"]] * 2
    assert "Each of the 31 days was counted again" in page.text


def test_a_tenants_report_names_nobody_else(built: Built):
    page = built.page("--tenant", LONG, "--month", "2026-03")
    text = (built.folder / "other.html").read_text("utf-8")
    assert "tenant-0" not in text
    assert "alert(1)" not in text
    assert "another tenant" in page.text
    daily = built.warehouse.expected()["daily_token_usage"]
    mine = sums(daily, 1)[LONG]
    assert page["Day by day"].numbers("Tokens")["Total"] == mine
    assert re.search(rf"build saw them: {mine:,} tokens in \d+ events? on both sides", page.text)
    total = Tables(built.file("many").read_text("utf-8"))["Day by day"].numbers("Tokens")["Total"]
    assert f"{total:,}" not in text


def test_a_tenants_report_has_its_own_costs(built: Built, billed: Billed):
    page = built.page("--tenant", LONG, "--month", "2026-03")
    mine = expected_costs(billed, "tenant_id")[LONG]
    assert set(mine.amounts) == {"EUR"}
    table = page["Day by day"]
    assert table.head[2:4] == ["Cost, EUR", "Without price"]
    assert table.amounts("Cost, EUR")["Total"] == mine.amounts["EUR"]
    assert table.numbers("Without price")["Total"] == mine.unpriced
    assert page["Month against month"].amounts("Cost, EUR")["2026-03"] == mine.amounts["EUR"]
    assert page["Cost by kind of token"].numbers("Tokens")["Total"] == mine.tokens
    assert page["Tokens without a price"].numbers("Tokens")["Total"] == mine.unpriced
    text = (built.folder / "other.html").read_text("utf-8")
    assert "Cost by day and model, USD" not in text
    every = expected_costs(billed)["Total"]
    for number in (every.tokens, every.unpriced):
        assert f"{number:,}" not in text


def test_costs_of_other_tokens_are_found(built: Built):
    said = re.compile(r"The costs are of the same tokens\s+(\S \w+)")
    before = built.page("--month", "2026-03")
    found = said.search(before.text)
    assert found is not None
    assert found[1] == "✓ in"
    more = (
        "update token_tracking.daily_token_cost set tokens = tokens {0} 1,"
        " unpriced_tokens = unpriced_tokens {0} 1"
        " where is_billed and currency is null and usage_date = '2026-03-09'"
    )
    prices, _ = many_prices()
    try:
        change(built, more.format("+"))
        page = built.page("--month", "2026-03")
        assert re.search(r"The costs are of the same tokens\s+✗ wrong", page.text)
        assert "1 day differs. Both are of the same build" in page.text
    finally:
        change(built, more.format("-"))
    try:
        built.warehouse.record("record_model_prices", {**prices[0], "amount": 77})
        page = built.page("--month", "2026-03")
        assert re.search(r"The costs are of the same tokens\s+i to know", page.text)
        assert "1 row of prices, aliases, rules and assignments" in " ".join(page.text.split())
        assert page["Day by day"] == before["Day by day"]
        mine = built.page("--month", "2026-03", "--tenant", LONG)
        assert "row of prices" not in mine.text
    finally:
        change(built, "delete from token_tracking_raw.model_prices where amount = 77")


def test_a_warehouse_without_costs_says_how_to_get_them(built: Built):
    """As one that a version before costs has built."""
    whole = Tables(built.file("many").read_text("utf-8"))
    marts = "model in ('daily_token_cost', 'monthly_token_cost', 'daily_cache_savings')"
    state = "token_tracking.build_state"
    change(
        built,
        f"create table public.kept as select * from {state} where {marts}",
        f"delete from {state} where {marts}",
        "alter table token_tracking.daily_token_cost rename to no_costs",
    )
    try:
        page = built.page("--month", "2026-03")
    finally:
        change(
            built,
            "alter table token_tracking.no_costs rename to daily_token_cost",
            f"insert into {state} select * from public.kept",
            "drop table public.kept",
        )
    assert "built by a version that knew no costs" in " ".join(page.text.split())
    assert "`token-tracking prices import --apply`" in page.text
    assert "Saved by caches" not in page.text
    assert "The costs are of the same tokens" not in page.text
    days = page["Day by day"]
    assert days.head[:3] == ["Day", "Tokens", "Input"]
    assert days.numbers("Tokens") == whole["Day by day"].numbers("Tokens")
    assert page["Tokens by who pays"].numbers("Calls") == whole["Tokens by who pays"].numbers(
        "Calls"
    )


def test_a_role_that_may_not_read_costs_gets_the_rest(built: Built, role: str):
    out = built.folder / "no_costs.html"
    change(built, f"revoke select on token_tracking.daily_token_cost from {role}")
    ended = report({**built.env, "PGUSER": role}, "--out", out, "--month", "2026-03")
    assert ended.code == 0, ended.err
    page = Tables(out.read_text("utf-8"))
    assert f"The role {role} may not read what tokens cost." in page.text
    assert page["Tokens by who pays"].head[2] == "Share"


def test_the_latest_month_with_usage_is_the_default(built: Built):
    assert "April 2026" in built.page().text
    assert "March 2026" in built.page("--tenant", "acme").text


def test_a_month_that_is_not_over_is_compared_day_for_day():
    period = Period.of(date(2026, 3, 1), as_of=date(2026, 3, 20), last_day=date(2026, 3, 18))
    assert (period.until, period.before, period.before_until) == (
        date(2026, 3, 19),
        date(2026, 2, 1),
        date(2026, 2, 19),
    )
    assert not period.is_complete
    longer = Period.of(date(2026, 3, 1), as_of=date(2026, 3, 31), last_day=date(2026, 3, 30))
    assert longer.before_until == date(2026, 3, 1)
    over = Period.of(date(2026, 2, 1), as_of=date(2026, 3, 1), last_day=date(2026, 2, 3))
    assert (over.until, over.before, over.before_until) == (
        date(2026, 3, 1),
        date(2026, 1, 1),
        date(2026, 2, 1),
    )
    assert over.is_complete


def test_a_month_that_is_not_over_says_so(built: Built):
    with patch.dict(os.environ, built.env), Reading.of("token_tracking") as reading:
        builds = {
            name: replace(build, as_of=datetime(2026, 3, 20, 9, 30))  # noqa: DTZ001
            for name, build in builds_of(reading, "token_tracking").items()
        }
        figures = read_figures(reading, builds, MARCH, "acme")
        assert figures is not None
        text = page_of(figures, checks(reading, figures, None))
    assert (figures.total.tokens, figures.tokens_before, len(figures.days)) == (1000, 400, 11)
    page = Tables(text)
    assert re.search(r"March 2026\s+until 11 March", page.text)
    assert "+150.0% on the first 11 days of February 2026" in page.text
    table = page["Month against month"]
    assert [(row[0], row[-1]) for row in table.body[:2]] == [
        ("2026-03 so far", ""),
        ("2026-02", ""),
    ]
    assert page["Tokens by operation"].numbers("Tokens before")["Total"] == 400


def test_a_month_of_calls_without_tokens(built: Built, browser: Browser):
    page = built.page("--month", "2025-12")
    assert page["Tokens by who pays"].numbers("Calls") == {"nil": 1, "Total": 1}
    assert page["Day by day"].numbers("Tokens")["Total"] == 0
    with browser.page(built.folder / "other.html") as opened:
        assert opened.complaints() == []


def test_a_rest_of_one_is_shown_itself():
    assert [len(top_of(range(n), 3).first) for n in (2, 3, 4, 5)] == [2, 3, 4, 3]
    assert [len(top_of(range(n), 3).others) for n in (2, 3, 4, 5)] == [0, 0, 0, 2]


@pytest.fixture
def role(built: Built) -> Iterator[str]:
    """A role that may read all marts, and nothing raw."""
    change(
        built,
        "create role report_reader login",
        "grant usage on schema token_tracking to report_reader",
        "grant select on all tables in schema token_tracking to report_reader",
    )
    yield "report_reader"
    change(built, "drop owned by report_reader", "drop role report_reader")


def test_a_role_that_may_not_read_raw_gets_its_report(built: Built, role: str):
    out = built.folder / "analyst.html"
    env = {**built.env, "PGUSER": role}
    ended = report(env, "--out", out, "--month", "2026-03")
    assert ended.code == 0, ended.err
    page = Tables(out.read_text("utf-8"))
    whole = Tables(built.file("many").read_text("utf-8"))
    assert page["Tokens by who pays"] == whole["Tokens by who pays"]
    assert f"The role {role} may not read the raw events" in page.text
    assert "The role report_reader may not read rejections" in page.text
    assert re.search(r"Equal to the raw events\?\s+\? Not known", page.text)
    assert "All tenants." in page.text


def saved_by_caches(page: Tables) -> str:
    return " ".join(page.text.split("Saved by caches")[1].split("cached tokens")[0].split())


def test_a_role_that_sees_a_part_is_told_so(built: Built, billed: Billed, role: str):
    marts = [f"{period}_token_{of}" for period in ("daily", "monthly") for of in ("usage", "cost")]
    change(
        built,
        *(f"alter table token_tracking.{mart} enable row level security" for mart in marts),
        *(
            f"create policy mine on token_tracking.{mart} to {role} using (tenant_id = '{LONG}')"
            for mart in marts
        ),
        f"insert into token_tracking_raw.tenant_readers values ('{role}', '{LONG}')",
        f"grant usage on schema token_tracking_raw to {role}",
        f"grant select on all tables in schema token_tracking_raw to {role}",
    )
    out = built.folder / "part.html"
    words = ("--out", out, "--month", "2026-03")
    try:
        part = report({**built.env, "PGUSER": role}, *words)
        page = Tables(out.read_text("utf-8"))
        change(
            built,
            *(
                f"create policy all_rows on token_tracking.{mart} to {role} using (true)"
                for mart in marts
            ),
        )
        own = built.page("--tenant", LONG, "--month", "2026-03")
        all_rows = report({**built.env, "PGUSER": role}, *words)
        whole = Tables(out.read_text("utf-8"))
    finally:
        change(
            built,
            *(
                f"drop policy if exists {policy} on token_tracking.{mart}"
                for mart in marts
                for policy in ("mine", "all_rows")
            ),
            *(f"alter table token_tracking.{mart} disable row level security" for mart in marts),
            "delete from token_tracking_raw.tenant_readers",
        )
    assert (part.code, all_rows.code) == (0, 0), part.err + all_rows.err
    assert "What the role report_reader may see." in " ".join(page.text.split())
    tenants = page["Tokens by who pays"]
    mine = expected_costs(billed, "tenant_id")[LONG]
    assert [row[0] for row in tenants.body] == [LONG]
    assert tenants.amounts("Cost, EUR") == dict.fromkeys((LONG, "Total"), mine.amounts["EUR"])
    assert tenants.numbers("Without price")["Total"] == mine.unpriced
    # In February LONG still paid by the public list.
    assert [head for head in tenants.head if head.startswith("Cost")] == ["Cost, EUR"]
    assert saved_by_caches(page) == saved_by_caches(own)
    assert " EUR " in saved_by_caches(page)
    assert re.search(r"Equal to the raw events\?\s+\? Not known", page.text)
    assert "All tenants." in whole.text
    assert re.search(r"Equal to the raw events\?\s+✓ Yes", whole.text)


@pytest.mark.parametrize("words", [(), ("--tenant", "acme"), ("--month", "2026-03")])
def test_a_role_that_sees_nothing_is_told_so(built: Built, role: str, tmp_path: Path, words):
    out = tmp_path / "nothing.html"
    tables = [f"token_tracking.{mart}_token_usage" for mart in ("daily", "monthly")]
    change(built, *(f"alter table {table} enable row level security" for table in tables))
    try:
        ended = report({**built.env, "PGUSER": role}, "--out", out, *words)
    finally:
        change(built, *(f"alter table {table} disable row level security" for table in tables))
    assert (ended.code, ended.out, out.exists()) == (1, "", False)
    whose = " that 'acme' pays for" if "acme" in words else ""
    assert ended.err.startswith(
        "Error: row-level security shows the role 'report_reader' no usage"
        f"{whose}: members of token_tracking_analyst"
    )
    assert "its row in token_tracking_raw.tenant_readers" in ended.err


def test_the_last_validation_is_told_where_it_is_given(built: Built, tmp_path: Path):
    assert "Not run from here" in Tables(built.file("many").read_text("utf-8")).text
    file = tmp_path / "validation.json"
    found = {
        "success": False,
        "database": "database usage at db:5432 as user reader",
        "as_of": "2026-04-01T02:30:00+05:30",
        "data_docs": "docs",
        "suites": [{"name": "raw", "findings": [{"success": True}, {"success": False}]}],
    }
    file.write_text(json.dumps(found))
    page = built.page("--validation", str(file))
    assert "1 of 2 expectations of Great Expectations hold as of 2026-03-31 21:00 UTC" in page.text
    assert re.search(r"Last validation\s+✗ wrong", page.text)
    file.write_text(json.dumps({**found, "success": True}))
    ended = report(built.env, "--out", tmp_path / "x.html", "--validation", file)
    assert ended.err.startswith("Warning: the validation is of database usage at db:5432 as user")
    text = Tables((tmp_path / "x.html").read_text("utf-8")).text
    assert re.search(r"Last validation\s+i to know", text)
    file.write_text('{"success": 1}')
    ended = report(built.env, "--out", tmp_path / "x.html", "--validation", file)
    assert ended.code == 1
    assert ended.err.startswith(f"Error: {file} is not a result of token-tracking validate")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--month", "2026-13"), 2, "'2026-13' is not a month; write it as 2026-03"),
        (("--month", "March"), 2, "'March' is not a month"),
        (("--month", "2024-01"), 1, "no usage in 2024-01; there is from 2025-01 to 2026-04"),
        (("--tenant", "acme", "--month", "2025-01"), 1, "no usage that 'acme' pays for in 2025-01"),
        (("--tenant", "acne"), 1, "unknown tenant 'acne': it pays for no usage; there is 'acme'"),
        (("--schema", "nowhere"), 1, "schema 'nowhere' has no built daily_agent_token_usage"),
        (("--schema", "token_tracking_raw"), 1, "`dbt build`"),
        (("--out", "/no/such/folder/x.html"), 1, "Error: /no/such/folder/x.html: No such file"),
        (("--out", "/"), 1, "Error: /: Is a directory"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(built: Built, tmp_path: Path, words, code, said):
    out = tmp_path / "x.html"
    ended = report(built.env, "--out", out, *words)
    assert (ended.code, ended.out, out.exists()) == (code, "", False)
    assert said in " ".join(ended.err.split())
    assert code == 2 or ended.err.count("\n") == 1


def test_a_database_that_is_not_there_or_is_another_one(built: Built, tmp_path: Path):
    nowhere = report({**built.env, "PGHOST": "/nowhere"}, "--out", tmp_path / "x.html")
    assert nowhere.code == 1
    assert "at /nowhere:5432" in nowhere.err
    env = {**built.env, "TOKEN_TRACKING_DSN": "postgresql://somebody@elsewhere/usage"}
    ended = report(env, "--out", tmp_path / "x.html", "--month", "2026-03")
    assert ended.code == 0, ended.err
    assert "Warning: " in ended.err
    assert "elsewhere" not in ended.out


def test_the_file_is_whole_and_small(built: Built):
    for name in PAGES:
        text = built.file(name).read_text("utf-8")
        attributes = Tables(text).attributes
        assert {name for name, _ in attributes}.isdisjoint({"src", "srcset", "data", "action"})
        assert all(value.startswith("#") for name, value in attributes if name == "href")
        without_library = re.sub(r"(?s)<script type=\"module\">.*?</script>", "", text)
        assert not re.search(r"https?:|@import|url\(", without_library), name
        assert text.count("window.vegaEmbed=") == (name != "empty")
        assert len(text.encode()) < 1.2 * 2**20


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_opens(built: Built, browser: Browser, name: str, width: int):
    with browser.page(built.file(name), width=width) as page:
        assert page.complaints() == []
        assert page.requests() == [built.file(name).as_uri()]
        assert page.run("document.documentElement.scrollWidth") == width
        charts = page.run("document.querySelectorAll('.chart svg').length")
        # One of costs for each currency.
        assert charts == {"empty": 0, "one": 4, "many": 6}[name]
        if name == "empty":
            assert "There is nothing yet" in page.run("document.body.innerText")
            return
        assert page.run(
            "[...document.querySelectorAll('.chart')].every(chart =>"
            " chart.querySelector('.mark-rect path, .mark-group path') !== null"
            " && chart.getBoundingClientRect().width > 300)"
        )
        largest = f"{2**63 - 1:,}"
        page.run(f"document.querySelector('.headline dd').textContent = '{largest}'")
        assert page.run("document.documentElement.scrollWidth") == width
        assert page.run(
            "[...document.querySelectorAll('td.number')].every(cell =>"
            " getComputedStyle(cell).textAlign === 'right'"
            " && getComputedStyle(cell).fontVariantNumeric.includes('tabular-nums'))"
        )
        assert page.run(
            "[...document.querySelectorAll('table')].every(table => table.caption.textContent"
            " && [...table.tHead.rows[0].cells].every(cell => cell.scope === 'col')"
            " && [...table.tBodies[0].rows].every(row => row.cells[0].scope === 'row'))"
        )


def test_text_of_the_data_is_nothing_but_text(built: Built, browser: Browser):
    with browser.page(built.file("many")) as page:
        rows = page.run(
            "[...document.querySelectorAll('#tenants tbody th, #agents tbody th')]"
            ".map(cell => cell.innerText)"
        )
        assert {HOSTILE, HOSTILE_AGENT} <= set(rows)
        assert HOSTILE_MODEL in page.run(
            "document.querySelector('#model-title ~ figure').innerText"
        )
        assert f"{HOSTILE}: " in page.run("document.querySelector('#chart-tenants').textContent")
        # The tooltip of the greatest tenant's bar.
        page.point_at("#chart-tenants .mark-rect path")
        page.until("document.querySelector('#vg-tooltip-element.visible') !== null")
        assert HOSTILE in page.run("document.querySelector('#vg-tooltip-element').innerText")
        only = "document.querySelectorAll('img, b[onmouseover], script:not([type])').length"
        assert page.run(only) == 0
        assert page.run("document.querySelectorAll('script[type=module]').length") == 2
        assert page.complaints() == []


def test_a_fetch_would_be_noticed_and_stopped(built: Built, browser: Browser, tmp_path: Path):
    text = built.file("one").read_text("utf-8")
    tampered = tmp_path / "tampered.html"
    bad = '<img src="http://127.0.0.1:9/x"><script>window.ran = true</script></main>'
    tampered.write_text(text.replace("</main>", bad))
    with browser.page(tampered) as page:
        assert "Content Security Policy" in "".join(page.complaints())
        assert page.run("window.ran === undefined")
    tampered.write_text(re.sub("<meta http-equiv=[^>]*>", "", text).replace("</main>", bad))
    with browser.page(tampered) as page:
        assert "http://127.0.0.1:9/x" in page.requests()
        assert page.run("window.ran")


def test_tables_sort_by_click_and_by_key(built: Built, browser: Browser):
    table = "#tenants table"
    column = (
        "[...document.querySelectorAll('#tenants tbody tr')]"
        ".map(row => row.cells[{}].innerText.replaceAll(',', ''))"
    )
    states = f"[...document.querySelectorAll('{table} thead th')].map(head => head.ariaSort)"
    with browser.page(built.file("many")) as page:
        assert page.run(states) == ["none", "descending", *["none"] * 7]
        foot = page.run(f"document.querySelector('{table}').tFoot.innerText")
        page.point_at(f"{table} th:nth-child(7) button", click=True)
        calls = [int(text) for text in page.run(column.format(6))]
        assert calls == sorted(calls, reverse=True)
        assert len(set(calls)) > 2
        assert page.run(states) == [*["none"] * 6, "descending", "none", "none"]
        page.point_at(f"{table} th:nth-child(7) button", click=True)
        assert [int(text) for text in page.run(column.format(6))] == calls[::-1]

        # Costs by their exact amounts, of which the text may be the same.
        page.point_at(f"{table} th:nth-child(4) button", click=True)
        titles = column.format(3).replace("innerText.replaceAll(',', '')", "title")
        costs = [title.split()[0] for title in page.run(titles) if title]
        assert costs == sorted(costs, key=Decimal, reverse=True)
        assert len(set(costs)) > 10

        page.run(f"document.querySelector('{table} th:nth-child(1) button').focus()")
        page.press("Enter")
        assert page.run(states)[0] == "ascending"
        names = page.run(column.format(0))
        assert [name for name in names if name.startswith("tenant-")] == sorted(
            name for name in names if name.startswith("tenant-")
        )
        page.press(" ")
        assert page.run(states)[0] == "descending"
        assert page.run(column.format(0)) == names[::-1]

        page.point_at(f"{table} th:nth-child(9) button", click=True)
        changes = [
            float(text.replace("\N{MINUS SIGN}", "-").rstrip("%"))
            for text in page.run(column.format(8))
            if text != "new"
        ]
        assert changes == sorted(changes, reverse=True)
        assert len(set(changes)) > 10
        assert page.run(f"document.querySelector('{table}').tFoot.innerText") == foot


CONTRASTS = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || element.matches("script, style")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(parse(ink)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push([walk.currentNode.textContent, ink, ratio]);
  }
  return poor;
})()
"""


def test_contrast_is_enough(built: Built, browser: Browser):
    with browser.page(built.file("many")) as page:
        assert page.run(CONTRASTS) == []
        page.run("document.querySelector('h2').style.color = '#999'")
        assert len(page.run(CONTRASTS)) == 1


def test_it_prints_on_a4(built: Built, browser: Browser):
    with browser.page(built.file("many")) as page:
        pdf = page.pdf()
        assert pdf.startswith(b"%PDF")
        [box] = set(re.findall(rb"/MediaBox\s*\[([^\]]*)\]", pdf))
        width, height = (float(number) for number in box.split()[2:])
        assert (round(width), round(height)) == (595, 842)
        # Anything wider than the printable area would be cut off.
        page.call("Emulation.setEmulatedMedia", media="print")
        page.resize(688, 1000)
        assert (
            page.run(
                "Math.max(...[...document.querySelectorAll('table, .chart svg')]"
                ".filter(it => it.checkVisibility()).map(it => it.getBoundingClientRect().right))"
            )
            <= 688
        )
        assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        # A footer that is repeated on each page would look like the end of the table.
        foot = "getComputedStyle(document.querySelector('tfoot')).display"
        assert page.run(foot) == "table-row-group"
        # Chromium repeats a head that holds no control's box.
        button = "getComputedStyle(document.querySelector('thead button')).display"
        assert page.run(button) == "contents"
