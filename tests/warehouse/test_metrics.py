"""Metrics: what MetricFlow answers equals the marts, and no metric adds what cannot be added."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support import ROOT
from tests.support.commands import forked_command
from tests.support.databases import Database, fresh_database
from tests.support.project import DbtProject
from tests.support.warehouse import Event, Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from token_tracking.embedded.server import Server

GUIDE = (ROOT / "docs" / "metrics.md").read_text("utf-8")
LAST = datetime(2026, 4, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
# In one process, since MetricFlow takes seconds to start.
COMMANDS = """
import io, json, os, sys
asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # an end of `mf` closes stdin
sys.stdout = io.StringIO()
from dbt_metricflow.cli.cli_configuration import CLIConfiguration
from dbt_metricflow.cli.main import cli
configuration = CLIConfiguration()
for line in asked:
    try:
        cli(json.loads(line), prog_name="mf", obj=configuration)
    except SystemExit as ended:
        print(json.dumps([ended.code or 0, sys.stdout.getvalue()]), file=answers, flush=True)
    sys.stdout.seek(0)
    sys.stdout.truncate()
"""
USAGE = {
    "tokens": "sum(tokens)",
    "input_tokens": "sum(input_tokens)",
    "output_tokens": "sum(output_tokens)",
    "cache_read_tokens": "sum(cache_read_tokens)",
    "calls": "sum(event_count)",
    "tokens_per_call": "sum(tokens)::float / sum(event_count)",
    "cache_hit_share": "sum(cache_read_tokens)::float / nullif(sum(input_tokens), 0)",
}
COSTS = {
    "billed_tokens": "sum(tokens)",
    "cost": "case when min(currency) is not distinct from max(currency) then sum(cost) end",
    "currencies": "count(distinct currency)",
    "cost_of_all_currencies": "sum(cost)",
    "cost_per_million_tokens": (
        "case when min(currency) = max(currency)"
        " then sum(cost) * 1000000 / sum(tokens) filter (where currency is not null) end"
    ),
    "unpriced_tokens": "sum(tokens) filter (where currency is null)",
    "unpriced_share": (
        "coalesce(sum(tokens) filter (where currency is null), 0)::float / sum(tokens)"
    ),
}
Rows = list[dict[str, object]]


@dataclass
class MetricFlow:
    """The command `mf` in a folder with the project, and the database that it reads."""

    process: subprocess.Popen[str]
    database: Database
    folder: Path

    def run(self, *words: str) -> tuple[int, str]:
        """Run a command of `mf`; return its exit code and what it said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return tuple(json.loads(self.process.stdout.readline()))

    def query(self, *words: str) -> Rows:
        """Return the answer in the digits of the database, for `mf` itself prints floats."""
        code, sql = self.run("query", *words, "--quiet", "--explain")
        assert code == 0, sql
        return self.rows(sql)

    def ask(self, metrics: str, by: str = "", where: str = "") -> Rows:
        return self.query(
            *("--metrics", metrics),
            *(("--group-by", by) if by else ()),
            *(("--where", where) if where else ()),
        )

    def rows(self, query: str) -> Rows:
        with closing(psycopg.connect(self.database.url, row_factory=dict_row)) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]


def price(
    amount: float, kind: str, model: str, currency: str = "USD", price_list: str = "list"
) -> dict[str, object]:
    return {
        "provider": "openai", "model": model, "token_kind": kind, "amount": amount,
        "currency": currency, "price_list": price_list, "valid_from": "2026-01-01T00:00Z",
    }  # fmt: skip


@pytest.fixture(scope="module")
def database(
    server: Server, built_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Two lists, two currencies, models without a price, calls without parts, days without any."""
    with contextmanager(fresh_database)(server, built_template) as database:
        warehouse = Warehouse(database)
        warehouse.insert(
            [
                Event(
                    f"{number}",
                    LAST - number * 2 * DAY,
                    tenant=("acme", "globex")[number % 2],
                    tokens=100 + 7 * number,
                    model=("gpt-4o", "mistral", None)[number % 3],
                    operation=("query", "chat")[number % 5 == 0],
                    service_tier=("batch", None)[number % 4 > 0],
                )
                for number in range(30)
            ]
        )
        warehouse.insert(
            [Event("whole", LAST, "initech", 50, input_tokens=None, output_tokens=None)]
        )
        warehouse.record(
            "record_model_prices",
            *(price(2.5, kind, "gpt-4o") for kind in ("input", "cache_read", "output")),
            *(price(0.08333333333333334, kind, "mistral", "EUR") for kind in ("input", "output")),
            *(price(1.25, kind, "gpt-4o", price_list="contract") for kind in ("input", "output")),
        )
        warehouse.record(
            "record_tenant_price_lists",
            {"tenant_id": "acme", "price_list": "contract", "valid_from": "2026-03-10T00:00Z"},
        )
        project = DbtProject(database.env, tmp_path_factory.mktemp("built"))
        project.must("run", price_lists=["list", "contract"])
        yield database


@pytest.fixture(scope="module")
def mf(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricFlow]:
    folder = tmp_path_factory.mktemp("project")  # for `mf` reads the folder target in it
    for name in ("dbt_project.yml", "profiles.yml", "models", "macros", "seeds", "tests"):
        (folder / name).symlink_to(ROOT / name)
    # `mf` asks the package index for its newest version, and goes on without an answer.
    env = {**os.environ, **database.env, "HTTPS_PROXY": "http://localhost:1", "TMPDIR": str(folder)}
    subprocess.run([*forked_command("dbt"), "--quiet", "parse"], env=env, cwd=folder, check=True)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", COMMANDS],
        env=env,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield MetricFlow(process, database, folder)


def expected(mf: MetricFlow, by: str, *, of_usage: bool) -> Rows:
    """Return the metrics as plain queries of the marts have them."""
    names = by.split(",") if by else []
    columns = {
        name: "date_trunc('month', usage_date)"
        if name == "metric_time__month"
        else name.replace("metric_time__day", "usage_date").removeprefix("usage__")
        for name in names
    }
    found: dict[tuple[object, ...], dict[str, object]] = {}
    sources = [(COSTS, "daily_token_cost where is_billed")]
    if of_usage:
        sources.append((USAGE, "daily_token_usage"))
    for metrics, source in sources:
        listed = ", ".join(f"{sql} as {name}" for name, sql in {**columns, **metrics}.items())
        grouped = f"group by {', '.join(columns.values())}" if names else ""
        for row in mf.rows(f"select {listed} from token_tracking.{source} {grouped}"):
            key = tuple(row[name] for name in names)
            found.setdefault(key, {}).update(row)
    return list(found.values())


def normal(rows: Rows) -> list[list[tuple[str, object]]]:
    """Return rows in an order, days as days, no unpriced tokens as 0, and floats rounded."""

    def value(name: str, found: object) -> object:
        if isinstance(found, datetime):
            return found.date()
        if isinstance(found, float):
            return round(found, 12)
        if name == "cost_per_million_tokens" and found is not None:
            return round(Decimal(str(found)), 9)
        return 0 if found is None and name == "unpriced_tokens" else found

    return sorted(
        (sorted((name, value(name, found)) for name, found in row.items()) for row in rows),
        key=repr,
    )


@pytest.mark.parametrize(
    "by",
    [
        "",
        "metric_time__month,usage__model",
        "metric_time__day,usage__tenant_id",
        "usage__token_type,usage__operation",
    ],
)
def test_every_metric_equals_the_marts(mf: MetricFlow, by: str):
    found = mf.ask(",".join((*USAGE, *COSTS)), by)
    assert normal(found) == normal(expected(mf, by, of_usage=True))


@pytest.mark.parametrize(
    "by",
    [
        "usage__currency",
        "usage__price_list,usage__currency,usage__tenant_id",
        "metric_time__month,usage__provider,usage__token_kind,usage__service_tier",
    ],
)
def test_costs_have_more_dimensions(mf: MetricFlow, by: str):
    found = mf.ask(",".join(COSTS), by)
    assert normal(found) == normal(expected(mf, by, of_usage=False))


def test_the_guides_first_query_prints_what_the_marts_have(mf: MetricFlow):
    command = "mf query --metrics tokens,cost --group-by metric_time__month,usage__model"
    assert f"    {command}\n" in GUIDE
    [_, *words] = shlex.split(command)
    printed = mf.folder / "printed.csv"
    code, said = mf.run(*words, "--csv", str(printed))
    assert code == 0, said
    with printed.open() as lines:
        found = {
            (row["metric_time__month"][:10], row["usage__model"]): tuple(
                float(row[name] or "nan") for name in ("tokens", "cost")
            )
            for row in csv.DictReader(lines)
        }
    marts = {
        tuple(row.values())[:2]: tuple(float(row[name] or 0) for name in ("tokens", "cost"))
        for row in mf.rows(
            "select usage_month::text, model, tokens, cost from ("
            " select usage_month, model, sum(tokens) as tokens"
            " from token_tracking.monthly_token_usage group by 1, 2) as usage"
            " full join ("
            " select usage_month, model, sum(cost) as cost"
            " from token_tracking.monthly_token_cost where is_billed group by 1, 2) as costs"
            " using (usage_month, model)"
        )
    }
    assert len(found) == 9
    assert found == marts


def test_the_guides_commands_run(mf: MetricFlow):
    commands = re.findall(r"^    (mf .*)$", GUIDE.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        code, said = mf.run(*shlex.split(command)[1:])
        assert code == 0, said


def test_currencies_are_never_added(mf: MetricFlow):
    [both] = mf.ask("cost,cost_per_million_tokens,currencies")
    assert both == {"cost": None, "cost_per_million_tokens": None, "currencies": 2}
    months = mf.ask("cost,currencies", "metric_time__month")
    assert {(row["currencies"], row["cost"] is None) for row in months} == {(1, False), (2, True)}
    each = {row["usage__currency"]: row["cost"] for row in mf.ask("cost", "usage__currency")}
    assert each.keys() == {"USD", "EUR", None}
    for currency, cost in each.items():
        assert (cost == 0) is (currency is None)
    euros = mf.ask("cost", where="{{ Dimension('usage__currency') }} = 'EUR'")
    assert euros == [{"cost": each["EUR"]}]
    # To the last of 17 digits.
    [(tokens,)] = mf.database.rows(
        "select sum(tokens) from token_tracking.daily_token_cost"
        " where model = 'mistral' and token_kind in ('input', 'output') and is_billed"
        " and currency is not null"
    )
    assert each["EUR"] == tokens * Decimal("0.08333333333333334") / 1_000_000


def test_lists_that_nobody_pays_by_cost_nothing(mf: MetricFlow):
    query = "select sum(tokens), count(distinct price_list) from token_tracking.daily_token_cost"
    assert mf.database.rows(query)[0][1] == 2
    [totals] = mf.ask("tokens,billed_tokens")
    assert totals["tokens"] == totals["billed_tokens"]
    assert mf.database.rows(f"{query} where is_billed")[0][0] == totals["tokens"]
    assert mf.database.rows(query)[0][0] > totals["tokens"]
    paid = mf.ask("billed_tokens", "usage__tenant_id,usage__price_list")
    assert {(row["usage__tenant_id"], row["usage__price_list"]) for row in paid} == {
        ("acme", "list"),
        ("acme", "contract"),
        ("globex", "list"),
        ("initech", "list"),
    }


def test_a_share_of_nothing_is_null(mf: MetricFlow):
    shares = "tokens_per_call,cache_hit_share,unpriced_share,cost_per_million_tokens"
    [whole] = mf.ask(shares, where="{{ Dimension('usage__tenant_id') }} = 'initech'")
    assert whole == {
        "tokens_per_call": 50.0,
        "cache_hit_share": None,
        "unpriced_share": 1.0,
        "cost_per_million_tokens": None,
    }
    [nothing] = mf.ask(f"cost,{shares}", where="{{ Dimension('usage__tenant_id') }} = 'nobody'")
    assert set(nothing.values()) == {None}


def test_tokens_do_not_divide_by_what_only_costs_have(mf: MetricFlow):
    code, said = mf.run("query", "--quiet", "--metrics", "tokens", "--group-by", "usage__currency")
    assert code == 1
    assert "usage__currency" in said


def test_the_time_spine_has_every_day(mf: MetricFlow):
    found = {row["metric_time__day"] for row in mf.query("--group-by", "metric_time__day")}
    days = (LAST.date() - date(2026, 2, 21)).days
    assert found == {LAST.date() - number * DAY for number in range(days + 1)}
    with_usage = mf.ask("calls", "metric_time__day")
    assert len(with_usage) == 30


def test_the_warehouse_has_every_dimension(mf: MetricFlow):
    code, said = mf.run("validate-configs")
    assert code == 0, said
    checked = re.findall(r"ERRORS: (\d+), FUTURE_ERRORS: (\d+), WARNINGS: (\d+)", said)
    assert len(checked) > 4
    assert {count for counts in checked for count in counts} == {"0"}


def test_the_guide_explains_every_metric(mf: MetricFlow):
    manifest = json.loads((mf.folder / "target" / "semantic_manifest.json").read_text("utf-8"))
    names = [metric["name"] for metric in manifest["metrics"]]
    assert sorted(names) == sorted((*USAGE, *COSTS))
    assert all(metric["label"] and metric["description"] for metric in manifest["metrics"])
    assert [name for name in names if f"| `{name}` |" not in GUIDE] == []
