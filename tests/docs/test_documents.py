"""The documents: every link has a target, and every block marked `run` is run.

The info string of a block says whether it runs here: `run` does, `not tried` does not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg.types.json
import pytest
from psycopg.rows import dict_row

from tests.support import ROOT
from tests.support.chromium import PROGRAM, chromium
from tests.support.databases import (
    NOT_DURABLE,
    Database,
    copy_database,
    fresh_database,
    started_server,
)
from tests.support.money import (
    ANSWERS,
    ASSIGNMENTS,
    PRICES,
    RULES,
    Ledger,
    costs_by_tenant,
    next_build,
)
from tests.support.project import DbtProject
from token_tracking.cli.demo import _show_totals as show_totals
from token_tracking.cli.terminal import Terminal
from token_tracking.demo.demo import Demo
from token_tracking.event.fields import EVENT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_tracking.embedded.server import Server

DOCS = ROOT / "docs"
DOCUMENTS = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
END = date(2026, 3, 21)
SIZE = 0.03  # about 4,000 events
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string and its text."""

    info: str
    text: str
    heading: str

    @property
    def runs(self) -> bool:
        return "run" in self.info.split()


def blocks(document: Path, language: str = "") -> list[Block]:
    """Return the blocks of a document, those of one language or all."""
    found: list[Block] = []
    heading = ""
    lines = iter(document.read_text("utf-8").splitlines())
    for line in lines:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("```"):
            text = []
            while (inner := next(lines)) != "```":
                text.append(inner)
            found.append(Block(line[3:], "\n".join(text) + "\n", heading))
    return [block for block in found if block.info.startswith(language)]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path):
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@dataclass(frozen=True)
class Call:
    """A counted event, attributed by plain loops."""

    payer: str
    rule: str
    row: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.row[name]

    @property
    def day(self) -> date:
        return self.row["occurred_at"].astimezone(UTC).date()

    @property
    def month(self) -> date:
        return self.day.replace(day=1)


@dataclass
class Built:
    """The demo's usage in a database, and dbt's totals."""

    database: Database
    project: DbtProject
    demo: Demo | None = None

    def rows(self, query: str) -> list[dict[str, Any]]:
        # No answer may depend on this time zone.
        with closing(
            psycopg.connect(
                self.database.url, row_factory=dict_row, options="-c timezone=Asia/Kolkata"
            )
        ) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

    @cached_property
    def ledger(self) -> Ledger:
        return self.read_ledger()

    def read_ledger(self) -> Ledger:
        with closing(self.database.connect()) as connection:
            return Ledger.read(connection)

    @cached_property
    def calls(self) -> list[Call]:
        voids = {
            (row["tenant_id"], row["idempotency_key"])
            for row in self.rows("select * from token_tracking_raw.usage_voids")
        }
        owners = self.rows("select * from token_tracking_raw.agent_owners order by valid_from")
        found = []
        for row in self.rows("select * from token_tracking_raw.usage_events"):
            if (row["tenant_id"], row["idempotency_key"]) in voids:
                continue
            payer, rule = row["tenant_id"], "unknown_agent" if row["agent_id"] else "requester"
            for owner in owners:
                mine = owner["agent_id"] == row["agent_id"]
                if mine and owner["valid_from"] <= row["occurred_at"]:
                    payer, rule = owner["owner_tenant_id"], "agent_owner"
            found.append(Call(payer, rule, row))
        return found


def built_in(
    database: Database,
    server: Server,
    folder: Path,
    size: float = SIZE,
    before_build: Callable[[Database], None] | None = None,
) -> Built:
    """Send the demo's usage to a database and build."""
    demo = Demo(server, folder, database=database.env["PGDATABASE"])
    story = replace(demo.prepare(size=size), end_date=END)
    demo.send(story, lambda done, days: None)
    demo.price(story)
    if before_build:
        before_build(database)
    project = DbtProject(database.env, folder / "dbt")
    project.must("seed")
    project.must("run")
    return Built(database, project, demo)


@pytest.fixture(scope="module")
def built(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("documents")
    for database in fresh_database(server):
        yield built_in(database, server, folder, before_build=record_lists)


def record_lists(database: Database) -> None:
    """Record price lists that tenants pay by: in two currencies, with kinds that have no price."""
    for what, rows in (
        ("model_prices", PRICES),
        ("price_list_rules", RULES),
        ("tenant_price_lists", ASSIGNMENTS),
    ):
        recorded = f"select recorded from token_tracking_raw.record_{what}(%s::json)"
        assert database.value(recorded, (json.dumps(rows),)) == len(rows)


@pytest.fixture
def copy(server: Server, built: Built, tmp_path: Path) -> Iterator[Built]:
    """A copy of it that a test may change."""
    name = f"{built.database.env['PGDATABASE']}_copy"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            (built.database.env["PGDATABASE"],),
        )
        copy_database(connection, name, built.database.env["PGDATABASE"])
        database = Database(server.url(name), server.environment(name))
        yield Built(database, DbtProject(database.env, tmp_path / "dbt"))
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def alone() -> Iterator[tuple[Database, Server]]:
    """A database on a separate server: roles are cluster-wide, and other tests must find none."""
    for server in started_server(None, NOT_DURABLE):
        for database in fresh_database(server):
            yield database, server


# The front page

README = ROOT / "README.md"
PROMISES = DOCS / "promises.md"


def test_the_demo_prints_the_excerpt_of_the_front_page(
    server: Server, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of the demo's calls, as they are on the day that the excerpt was taken."""
    monkeypatch.delenv("COLUMNS", raising=False)  # a parallel run of the tests sets 80
    demo = built_in(database, server, tmp_path, size=1.0).demo
    assert demo is not None
    out = StringIO()
    with redirect_stdout(out):
        show_totals(demo, replace(demo.prepare(), end_date=END), Terminal())
    printed = iter([line.rstrip() for line in out.getvalue().splitlines()])
    [excerpt] = [block.text for block in blocks(README, "text demo")]
    lines = excerpt.rstrip().splitlines()
    assert len(lines) > 8
    assert [line for line in lines if line and line.rstrip() not in printed] == []


def test_each_promise_names_its_test():
    rows = re.findall(
        r"^\| .* \| (\[`test_.*) \|$", PROMISES.read_text("utf-8"), flags=re.MULTILINE
    )
    named = [
        link for row in rows for link in re.findall(r"\[`(\w+)`\]\(../(tests/[\w/]+\.py)\)", row)
    ]
    assert len(rows) > 10
    assert len(named) >= len(rows)
    missing = [
        name for name, file in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")
    ]
    assert missing == []


def test_the_map_names_every_place():
    """Each folder of the package, the dbt project and the tests; each module of the first floor."""
    package = ROOT / "ingest" / "token_tracking"
    places = {f"{path.name}/" for path in package.glob("*/") if path.name != "__pycache__"}
    places |= {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    for folder in ("macros", "models"):
        places |= {f"{folder}/{path.name}" for path in (ROOT / folder).glob("*/")}
    places |= {path.name for path in (ROOT / "macros").glob("*.sql")}
    tests = [path.parent for path in (ROOT / "tests").glob("*/__init__.py")]
    places |= {f"tests/{path.name}" for path in tests}
    text = (DOCS / "code.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/.]+)`", text))
    assert len(places) > 30
    assert places - named == set()


# Descriptions


def test_every_mart_tells_its_grain_in_the_database(built: Built):
    tables = built.rows(
        "select relname, relkind, obj_description(oid, 'pg_class') as said from pg_class"
        " where relnamespace = 'token_tracking'::regnamespace and relkind in ('r', 'v')"
        " and relname not like 'build_state' and relname not like 'rollup_changes'"
    )
    assert {row["relname"] for row in tables} > {
        "daily_token_usage",
        "build_status",
        "usage_events",
    }
    assert [row for row in tables if not str(row["said"]).startswith("One row per ")] == []
    columns = built.rows(
        "select attrelid::regclass::text as relation, attname as name,"
        " col_description(attrelid, attnum) as said from pg_attribute"
        " where attnum > 0 and attrelid in (select oid from pg_class"
        " where relnamespace = 'token_tracking'::regnamespace and relkind in ('r', 'v')"
        " and relname not like 'stg_%' and relname not in ('build_state', 'rollup_changes'))"
    )
    assert len(columns) > 60
    assert [row for row in columns if not row["said"]] == []


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed: apt-get install chromium")
def test_the_docs_site_is_one_file(tmp_path: Path):
    """Without database and network: `make docs` works offline."""
    venv = PROGRAMS.parent
    settings = [f"VENV={venv}", f"--old-file={venv / '.demo'}", f"DOCS={tmp_path}"]
    done = subprocess.run(
        ["make", "-C", ROOT, *settings, "docs"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with chromium() as browser, browser.page(tmp_path / "index.html") as page:
        page.run("location.hash = '#!/model/model.token_tracking.daily_token_usage'")
        page.until("document.body.innerText.includes('One row per usage_date')")
        page.run("location.hash = '#!/exposure/exposure.token_tracking.usage_report'")
        page.until("document.body.innerText.includes('a month as one HTML file')")
        assert [url for url in page.requests() if not re.match("file:|data:|blob:", url)] == []


# The cookbook


def summed(calls: list[Call], *names: str) -> dict[Any, int]:
    totals: dict[Any, int] = defaultdict(int)
    for call in calls:
        key = tuple(getattr(call, name) for name in names)
        totals[key if len(key) > 1 else key[0]] += call.tokens
    return dict(totals)


def this_month_against_last(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    march = summed([call for call in calls if call.month == date(2026, 3, 1)], "payer")
    february = summed([call for call in calls if call.month == date(2026, 2, 1)], "payer")
    assert {row["tenant_id"]: (row["this_month"], row["last_month"]) for row in rows} == {
        tenant: (march.get(tenant, 0), february.get(tenant, 0)) for tenant in {*march, *february}
    }
    top = rows[0]
    assert top["percent_more"] == round(100 * top["this_month"] / top["last_month"] - 100, 1)


def bill(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    mine = [call for call in calls if call.payer == "atlas-bank" and call.month.month == 3]
    assert {row["tokens_of_all_lines"] for row in rows} == {sum(call.tokens for call in mine)}
    assert {(row["token_type"], row["operation"], row["model"]): row["tokens"] for row in rows} == (
        summed(mine, "token_type", "operation", "model")
    )


def events_behind(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    mine = [call for call in calls if call.payer == "atlas-bank"]
    newest = max(call.day for call in mine)
    lines = summed(
        [call for call in mine if call.day == newest], "token_type", "operation", "model"
    )
    assert sum(row["tokens"] for row in rows) == max(lines.values())


def growth(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    now, before = defaultdict(int), defaultdict(int)
    for call in calls:
        age = (END - call.day).days
        if age <= 14:
            label = {"sumarize": "summarize"}.get(call.operation, call.operation)
            (now if age <= 7 else before)[call.payer, label] += call.tokens
    more = {key: now[key] - before[key] for key in {*now, *before}}
    assert [row["more"] for row in rows] == sorted(more.values(), reverse=True)[:10]
    assert all(more[row["tenant_id"], row["operation"]] == row["more"] for row in rows)


def shared_agents(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    owned = summed([c for c in calls if c.rule == "agent_owner"], "agent_id", "payer", "tenant_id")
    assert {
        (row["agent_id"], row["owner_who_pays"], row["used_by"]): row["tokens"] for row in rows
    } == owned
    sold = {payer for agent, payer, _ in owned if agent == "support-triage"}
    assert sold == {"lunar-labs", "nordlicht-logistik"}


def collections(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    documents = defaultdict(set)
    events = Counter()
    for call in calls:
        if call.collection_id and call.operation == "batch":
            documents[call.payer].update(call.metadata["document_ids"])
            events[call.payer] += 1
    assert {row["tenant_id"]: (row["event_count"], row["documents"]) for row in rows} == {
        tenant: (events[tenant], len(ids)) for tenant, ids in documents.items()
    }


def in_money(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    tokens: Counter[str] = Counter()
    for row in rows:
        tokens[row["tenant_id"]] += int(row["tokens"])
    assert tokens == summed([call for call in calls if call.month == date(2026, 3, 1)], "payer")


def every_day(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    used = summed([call for call in calls if call.payer == "tiny-cafe"], "day")
    days = [END - timedelta(days=30 - number) for number in range(30)]
    assert [(row["usage_date"], row["tokens"]) for row in rows] == [
        (day, used.get(day, 0)) for day in days
    ]
    assert {row["tokens"] == 0 for row in rows} == {True, False}


def conversations(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    with_one = [call for call in calls if call.conversation_id]
    totals = summed(with_one, "payer", "tenant_id", "conversation_id")
    assert [row["tokens"] for row in rows] == sorted(totals.values(), reverse=True)[:10]


def after_the_invoice(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    # All of the demo's usage is sent after it happened, months later.
    early = summed([call for call in calls if call.month < date(2026, 3, 1)], "payer")
    assert {row["tenant_id"]: row["tokens"] for row in rows} == early


def quiet(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    days: dict[str, list[date]] = defaultdict(list)
    for call in calls:
        days[call.payer].append(call.day)
    newest = max(call.day for call in calls)
    tokens = summed(calls, "payer")
    assert {tuple(row.values()) for row in rows} == {
        (payer, (newest - max(used)).days, min(used), max(used), tokens[payer])
        for payer, used in days.items()
    }
    lengths = [row["days_without_usage"] for row in rows]
    assert lengths == sorted(lengths, reverse=True)


def as_of_when(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    [row] = rows
    assert row["as_of"] > max(call.recorded_at for call in calls)
    assert (row["billing_timezone"], row["is_of_one_build"], row["newest_build"]) == (
        "UTC",
        True,
        1,
    )


def at_this_moment(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    newest = max(call.day for call in calls)
    assert {row["tenant_id"]: row["tokens"] for row in rows} == summed(
        [call for call in calls if call.day == newest], "payer"
    )


def not_counted(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    kinds: Counter[str] = Counter()
    for row in rows:
        kinds[row["kind"]] += row["n"]
    assert kinds == {"conflict": 6, "rejection": 6, "void": 40}


def totals_are_right(rows: list[dict[str, Any]], calls: list[Call]) -> None:
    [row] = rows
    total = sum(call.tokens for call in calls)
    assert (row["raw_tokens"], row["daily_tokens"], row["monthly_tokens"]) == (total,) * 3
    assert row["as_of"] > datetime(2026, 3, 21, tzinfo=UTC)


CHECKS = [
    this_month_against_last,
    bill,
    events_behind,
    growth,
    shared_agents,
    collections,
    in_money,
    every_day,
    conversations,
    after_the_invoice,
    quiet,
    as_of_when,
    at_this_moment,
    not_counted,
    totals_are_right,
]


@pytest.mark.parametrize("number", range(len(CHECKS)), ids=lambda number: CHECKS[number].__name__)
def test_the_cookbook_answers(built: Built, number: int):
    queries = blocks(DOCS / "cookbook.md", "sql")
    assert len(queries) == len(CHECKS)
    assert all(query.runs for query in queries)
    assert queries[number].heading.startswith(f"{number + 1}. ")
    rows = built.rows(queries[number].text)
    assert rows
    CHECKS[number](rows, built.calls)


def test_the_cookbook_says_what_it_costs(built: Built):
    rows = built.rows(blocks(DOCS / "cookbook.md", "sql")[6].text)
    assert [tuple(row.values()) for row in rows] == costs_by_tenant(built.ledger)


# Money

MONEY = DOCS / "money.md"


def answer(built: Built, server: Server, number: int) -> list[tuple[Any, ...]]:
    """Return the answer to a question about money, and check the result that the document shows."""
    queries = blocks(MONEY, "sql")
    results = blocks(MONEY, "text result")
    assert len(queries) == len(results) == len(ANSWERS) + 1
    query, result = queries[number - 1], results[number - 1]
    assert query.runs
    assert query.heading == result.heading
    assert query.heading.startswith(f"{number}. ")
    printed = subprocess.run(
        [server.bin_dir / "psql", "-X", "-c", query.text, built.database.url],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    lines = iter([line.rstrip() for line in printed.splitlines()])
    shown = [line for line in result.text.splitlines() if line != "..."]
    assert len(shown) > 2
    assert [line for line in shown if line not in lines] == []
    return [tuple(row.values()) for row in built.rows(query.text)]


@pytest.mark.parametrize("number", range(1, len(ANSWERS) + 1))
def test_money_is_counted_event_by_event(built: Built, server: Server, number: int):
    expected = ANSWERS[number - 1](built.ledger)
    assert expected
    assert answer(built, server, number) == expected


def test_money_at_the_beginning_of_a_month(copy: Built):
    """Its days are fewer than the week that a forecast needs."""
    calls = [
        {
            "tenant_id": "nordlicht-logistik", "provider": "openai", "model": "gpt-4o",
            "input_tokens": tokens, "conversation_id": "spring", "occurred_at": day,
        }
        for tokens, day in (
            (9000, "2026-03-30T10:00Z"), (5000, "2026-04-01T10:00Z"), (7000, "2026-04-03T10:00Z"),
        )
    ]  # fmt: skip
    recorded = "select recorded from token_tracking_raw.track_token_usage_batch(%s::json)"
    assert copy.database.value(recorded, (json.dumps(calls),)) == len(calls)
    copy.project.must("run")
    for query, expected in zip(blocks(MONEY, "sql"), ANSWERS, strict=False):
        rows = [tuple(row.values()) for row in copy.rows(query.text)]
        assert rows == expected(copy.ledger), query.heading


def test_the_next_build_changes_what_is_said(copy: Built, built: Built, server: Server):
    """A corrected price, a late call and a void."""
    assert copy.rows(blocks(MONEY, "sql")[-1].text) == []
    voided = built.calls[0]
    name = {"provider": "openai", "model": "gpt-4o"}
    price = {**name, "token_kind": "input", "amount": 2, "valid_from": "2026-02-20T00:00Z"}
    call = {**name, "tenant_id": "tiny-cafe", "occurred_at": "2026-01-09T10:00Z"}
    with closing(copy.database.connect()) as connection:
        for procedure, rows in (
            ("record_model_prices", [price]),
            ("track_token_usage_batch", [{**call, "input_tokens": 90_000}]),
        ):
            recorded = f"select recorded from token_tracking_raw.{procedure}(%s::json)"
            assert connection.execute(recorded, (json.dumps(rows),)).fetchall() == [(1,)]  # type: ignore[arg-type]
        connection.execute(
            "select token_tracking_raw.void_token_usage(%s, %s, 'sent twice')",
            (voided.tenant_id, voided.idempotency_key),
        )
    expected = next_build(built.ledger, copy.read_ledger())
    assert {line[0] for line in expected} == {
        date(2025, 12, 1), date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1)
    }  # fmt: skip
    assert answer(copy, server, len(ANSWERS) + 1) == expected


# The guides


def run_shell(text: str, on: Built, folder: Path, server: Server) -> str:
    """Run the lines of a block; dbt runs in a process that has read the project already."""
    said = ""
    for line in text.replace("\\\n", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("dbt "):
            on.project.must(*shlex.split(line, comments=True)[1:])
            continue
        done = subprocess.run(
            ["bash", "-c", line],
            env={
                "PATH": f"{PROGRAMS}:{server.bin_dir}:{os.environ['PATH']}",
                "HOME": str(folder),
                "COLUMNS": "200",
                "TOKEN_TRACKING_SPOOL_DIR": str(folder / "spool"),
                **on.database.env,
            },
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said += done.stdout + done.stderr
    return said


def run_python(text: str, database: Database, folder: Path, **settings: str) -> str:
    """Run code that may await, as in a notebook, and return its output."""
    runner = (
        "import ast, asyncio, sys\n"
        "code = compile(sys.stdin.read(), 'document', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
        "asyncio.run(eval(code))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", runner],
        input=text,
        env={
            "PYTHONPATH": ":".join([str(folder), *sys.path]),
            "TOKEN_TRACKING_DSN": database.url,
            "TOKEN_TRACKING_SPOOL_DIR": str(folder / "spool"),
            **settings,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


GUIDE = DOCS / "migration.md"
STORY = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
logging.getLogger("asyncio").setLevel(logging.WARNING)
from token_tracking import track_token_usage
async def call(key, tokens):
    await track_token_usage("acme", tokens, operation="chat", idempotency_key=key)
"""
OLD_TABLE = """
    create schema billing;
    create table billing.daily_usage (
        tenant_id text, usage_date date, token_type varchar, total_tokens integer
    );
    insert into billing.daily_usage values
        ('acme', '2026-02-14', 'llm', 100), ('acme', '2026-02-14', 'llm', 20),
        ('acme', '2026-02-15', 'embedding', 7), ('globex', '2026-02-15', 'llm', 5),
        ('acme', '2026-02-16', 'llm', 11), ('globex', '2026-02-17', 'llm', 13);
    create schema app;
    create table app.agents (id text, tenant_id text);
    insert into app.agents values ('agent-7', 'acme'), ('agent-9', 'acme');
"""
DAYS_OF_FEBRUARY = """
    select
        tenant_id, usage_date::text as usage_date, token_type::text as token_type,
        sum(tokens)::int as tokens
    from token_tracking.daily_token_usage where usage_date < '2026-03-01'
    group by 1, 2, 3 order by 1, 2, 3
"""


def test_the_guides_have_the_same_code():
    spanish = blocks(DOCS / "es" / "guia-de-migracion.md")
    assert [(block.info, block.text) for block in blocks(GUIDE)] == [
        (block.info, block.text) for block in spanish
    ]
    assert {block.info.split(maxsplit=1)[1] for block in spanish} == {
        "run",
        "shim",
        "beside",
        "log",
        "not tried: names and places are yours",
    }


def as_service(database: Database) -> Database:
    """The same database, by the login that the guide makes for a service."""
    return replace(database, url=database.url.replace("postgres@", "chat_service@"))


def test_the_migration_goes_as_the_guide_says(alone: tuple[Database, Server], tmp_path: Path):
    database, server = alone
    here = Built(database, DbtProject(database.env, tmp_path / "dbt"))
    (tmp_path / "old_counters.py").write_text(
        "async def track_token_usage(*args, **kwargs):\n    print('old:', args, kwargs)\n"
    )
    login, casts, owners, opening, undo = (
        block.text for block in blocks(GUIDE, "sql") if block.runs
    )
    roles, compare = (block.text for block in blocks(GUIDE, "sh") if block.runs)
    [beside] = (block.text for block in blocks(GUIDE, "python beside"))
    with closing(database.connect()) as connection:
        connection.execute(OLD_TABLE)

    # The package is installed before the privileges are granted: its events wait, as the guide's
    # last table says.
    early = "from common.tracking import track_token_usage\n" + STORY
    with closing(database.connect()) as connection:
        connection.execute("create role chat_service login")
        connection.execute("revoke all on schema token_tracking_raw from public")
    said = run_python(early + "await call('early', 17)\n", as_service(database), tmp_path)
    assert "InsufficientPrivilege 42501" in said
    with closing(database.connect()) as connection:
        connection.execute("drop role chat_service")

    run_shell(roles, here, tmp_path, server)
    with closing(database.connect()) as connection:
        connection.execute(login)
        assert connection.execute(owners).fetchall() == [(2,)]
    code = "".join(block.text for block in blocks(GUIDE, "python") if block.runs)
    assert run_python(code, as_service(database), tmp_path) == ""
    # The next process has sent the waiting events, or is about to.
    run_shell(
        "token-tracking spool flush",
        Built(as_service(database), here.project),
        tmp_path,
        server,
    )

    # Both count, and everything else that a service imports is there.
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "tracking.py").write_text(beside)
    calls = (
        "from common.tracking import TOKEN_TYPE_LLM, track_token_usage, void_usage\n"
        "assert await track_token_usage('acme', 120, token_type=TOKEN_TYPE_LLM)\n"
    )
    assert run_python(calls, as_service(database), tmp_path) == (
        "old: ('acme', 120) {'token_type': 'llm'}\n"
    )

    # The owner of the guide's table pays for others' use of its agents.
    events = [
        ("acme", None, 11, "2026-02-16"),
        ("globex", None, 13, "2026-02-17"),
        ("initech", "agent-7", 1000, "2026-03-02"),
    ]
    usage = [
        {"tenant_id": tenant, "agent_id": agent, "tokens": n, "occurred_at": f"{day}T10:00:00Z"}
        for tenant, agent, n, day in events
    ]
    with closing(database.connect()) as connection:
        connection.execute(
            "select token_tracking_raw.track_token_usage_batch(%s)", (json.dumps(usage),)
        )
    assert "2 of 2 tenants' days are equal" in run_shell(compare, here, tmp_path, server)
    assert here.rows(casts) == [{"track_token_usage": True}]
    keys = "select tokens from token_tracking_raw.usage_events where occurred_at > '2026-03-01'"
    assert sorted(row["tokens"] for row in here.rows(keys)) == [17, 120, 120, 350, 1000]
    agents = "select tenant_id, agent_id, tokens from token_tracking.daily_agent_token_usage"
    assert [tuple(row.values()) for row in here.rows(agents)] == [("acme", "agent-7", 1000)]
    newest = "select agent_id, owner_tenant_id from token_tracking_raw.agent_owners"
    assert database.rows(f"{newest} where valid_from > '2026-03-01'") == [("agent-9", "globex")]

    def counts() -> tuple[int, ...]:
        with closing(psycopg.connect(database.url, autocommit=True)) as connection:
            row = connection.execute(opening).fetchone()
        assert row is not None
        return row

    assert counts() == (3, 0, 0, 0, None)
    assert counts() == (0, 3, 0, 0, None)
    here.project.must("run")
    old = here.rows(
        DAYS_OF_FEBRUARY.replace("token_tracking.daily_token_usage", "billing.daily_usage").replace(
            "sum(tokens)", "sum(total_tokens)"
        )
    )
    assert here.rows(DAYS_OF_FEBRUARY) == old
    assert len(old) == 5
    labels = "select label_kind, label, event_count from token_tracking.unmapped_labels"
    assert here.rows(labels) == [{"label_kind": "operation", "label": "unknown", "event_count": 3}]

    with closing(psycopg.connect(database.url, autocommit=True)) as connection:
        assert connection.execute(undo).fetchall() == [(3,)]
    here.project.must("run")
    assert [row["usage_date"] for row in here.rows(DAYS_OF_FEBRUARY)] == [
        "2026-02-16",
        "2026-02-17",
    ]


def test_mixed_ids_need_the_casts_of_the_guide(built: Built):
    with pytest.raises(psycopg.errors.UndefinedFunction):
        built.rows(
            "select token_tracking_raw.track_token_usage("
            "'acme'::text, 120, p_agent_id => gen_random_uuid())"
        )


def test_a_services_own_module_wins_without_a_package_too(emptied: Database, tmp_path: Path):
    (tmp_path / "common").mkdir()
    own = tmp_path / "common" / "tracking.py"
    own.write_text("OLD = True\n")
    run_python(
        "import asyncio, common.tracking\nassert common.tracking.OLD\nawait asyncio.sleep(0)\n",
        emptied,
        tmp_path,
    )
    call = (
        "from common.tracking import TOKEN_TYPE_LLM, track_token_usage\n"
        "assert await track_token_usage('acme', 7, token_type=TOKEN_TYPE_LLM)\n"
    )
    [shim] = (block.text for block in blocks(GUIDE, "python shim"))
    own.write_text(shim)
    run_python(call, emptied, tmp_path)
    own.unlink()
    run_python(call, emptied, tmp_path)
    assert emptied.value("select sum(tokens) from token_tracking_raw.usage_events") == 14


def test_a_regular_package_keeps_its_own_modules(emptied: Database, tmp_path: Path):
    [shim] = (block.text for block in blocks(GUIDE, "python shim"))
    assert len(shim.splitlines()) == 2
    common = tmp_path / "common"
    common.mkdir()
    (common / "__init__.py").write_text("")
    (common / "own.py").write_text("ANSWER = 42\n")
    (common / "tracking.py").write_text(shim)
    code = (
        "import common.own, common.tracking, token_tracking\n"
        f"assert common.tracking.__file__.startswith({str(tmp_path)!r})\n"
        "assert common.own.ANSWER == 42\n"
        "assert common.tracking.__all__ == token_tracking.__all__\n"
        "for name in token_tracking.__all__:\n"
        "    assert getattr(common.tracking, name) is getattr(token_tracking, name)\n"
        "assert await common.tracking.track_token_usage('acme', 7)\n"
    )
    run_python(code, emptied, tmp_path)
    assert emptied.value("select tokens from token_tracking_raw.usage_events") == 7


def test_the_logs_are_real(emptied: Database, tmp_path: Path):
    def lines(text: str) -> list[str]:
        without_places = re.sub(r'socket "[^"]*"', "socket", text)
        return re.sub(r"\d+\.\d ms", "n ms", without_places).splitlines()

    story, outage = (lines(block.text) for block in blocks(GUIDE, "text log"))
    calls = "".join(
        f"await call({key!r}, {tokens})\n"
        for key, tokens in [("message-17", 120)] * 2 + [("message-17", 130), ("m", -1)]
    )
    told = lines(run_python(STORY + calls, emptied, tmp_path))
    assert told[: len(story)] == story
    nowhere = Database(f"host={tmp_path} dbname=nothing", {})
    told = lines(run_python(STORY + "await call('message-18', 120)\n", nowhere, tmp_path))
    rest = iter(told)
    assert all(line in rest for line in outage), told


# Operations

OPERATIONS = DOCS / "operations.md"
MONTHS = """
    select usage_month, tenant_id, token_type::text, operation::text, model, tokens, event_count
    from token_tracking.monthly_token_usage order by 1, 2, 3, 4, 5
"""


def section(heading: str, language: str) -> list[str]:
    """Return the texts of the blocks below a heading of the operator's guide."""
    return [block.text for block in blocks(OPERATIONS, language) if block.heading == heading]


def test_each_block_says_whether_it_was_tried():
    for document in (OPERATIONS, DOCS / "cookbook.md"):
        found = blocks(document)
        assert found
        assert [
            block.info for block in found if not block.runs and "not tried" not in block.info
        ] == []


def test_figures_of_the_operators_guide(built: Built):
    [sizing], [monitoring] = section("Sizing", "sql"), section("Monitoring", "sql")
    [size] = built.rows(sizing)
    said = re.search(r"(\d+) bytes an event", OPERATIONS.read_text("utf-8"))
    assert said is not None
    assert size["events"] == len(built.calls) + 40
    assert size["bytes_an_event"] == pytest.approx(int(said[1]), rel=0.25)
    [now] = built.rows(monitoring)
    assert 0 <= now.pop("seconds_since_build") < 3600
    assert now == {
        "runs_behind": 0,
        "conflicts_a_day": 6,
        "rejections_a_day": 6,
        "unmapped_labels": 0,
        "unknown_agents": 0,
    }


def test_commands_of_the_operators_guide(built: Built, server: Server, tmp_path: Path):
    [watch] = section("Monitoring", "sh")
    assert "nothing waits" in run_shell(watch, built, tmp_path, server)
    [check] = section("PgBouncer", "sql")
    interval = "show client_connection_check_interval"
    with closing(built.database.connect()) as connection:
        connection.execute(check)
    try:
        assert built.database.value(interval) == "1s"
    finally:
        with closing(built.database.connect()) as connection:
            connection.execute("alter role current_user reset all")


def test_personal_data_goes_and_totals_stay(copy: Built):
    copy.project.must("run")
    months = copy.rows(MONTHS)
    runs = "select model, run_number from token_tracking.build_status order by model"
    status = copy.rows(runs)
    keys = "tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id, ingest_xid"
    unchanged = f"select {keys}, input_tokens from token_tracking_raw.usage_events order by 1, 2"
    before = copy.rows(unchanged)
    named = (
        "select * from token_tracking_raw.usage_events where tenant_id = 'atlas-bank'"
        " and conversation_id like 'conversation-202603%'"
    )
    person = copy.rows(named)[0]
    [erase] = section("Erasing personal data", "sql")
    with closing(copy.database.connect()) as connection:
        connection.execute(erase)
    assert copy.rows(named) == []
    assert copy.rows(unchanged) == before
    copy.project.must("run")
    assert copy.rows(MONTHS) == months
    assert copy.rows(runs) == status

    def again(tokens: int) -> tuple[int, ...]:
        [answer] = copy.database.rows(
            "select recorded, duplicates, conflicts"
            " from token_tracking_raw.track_token_usage_batch(json_build_array(%s::json))",
            (
                psycopg.types.json.Json(
                    {
                        **{name: person[name] for name in set(EVENT_FIELDS) - {"occurred_at"}},
                        "tokens": tokens,
                    }
                ),
            ),
        )
        return answer

    assert again(person["tokens"]) == (0, 1, 0)
    assert again(person["tokens"] + 1) == (0, 0, 1)


FOR_ANALYSTS = 13  # of the cookbook's queries


LOGIN = "create role acme_reader login in role token_tracking_tenant_reader"


@pytest.fixture
def with_roles(alone: tuple[Database, Server], tmp_path: Path) -> tuple[Built, Server]:
    """The demo's usage, and who may read it."""
    database, server = alone
    here = Built(database, DbtProject(database.env, tmp_path / "dbt"))
    run_shell("token-tracking schema apply --roles", here, tmp_path, server)
    with closing(database.connect()) as connection:
        connection.execute(LOGIN)
        connection.execute(
            "insert into token_tracking_raw.tenant_readers values ('acme_reader', 'atlas-bank')"
        )
    return built_in(database, server, tmp_path), server


def test_a_dump_comes_to_life_elsewhere(with_roles: tuple[Built, Server], tmp_path: Path):
    source, server = with_roles
    dump, elsewhere = section("Backup and restore", "sh")
    run_shell(dump, source, tmp_path, server)
    create, restore, stamp, build = elsewhere.splitlines()
    for other in started_server(None, NOT_DURABLE):
        database = Database(other.url("usage"), other.environment("usage"))
        there = Built(database, DbtProject(database.env, tmp_path / "dbt"))
        run_shell(f"{create}\n{restore}", there, tmp_path, other)
        early = there.project.run("run")
        assert "carry transaction numbers that this cluster has not reached" in early.said
        run_shell(f"{stamp}\n{build}", there, tmp_path, other)
        assert there.rows(MONTHS) == source.rows(MONTHS) != []
        with closing(database.connect()) as connection:
            # The login is created again; what it reads came with the dump.
            connection.execute(LOGIN)
            connection.execute("set role acme_reader")
            read = connection.execute(
                "select distinct tenant_id from token_tracking.daily_token_usage"
            )
            assert read.fetchall() == [("atlas-bank",)]
            connection.execute("set role token_tracking_analyst")
            queries = [block.text for block in blocks(DOCS / "cookbook.md", "sql")]
            for query in queries[:FOR_ANALYSTS]:
                assert connection.execute(query).fetchone() is not None
            for query in blocks(MONEY, "sql"):
                connection.execute(query.text)
            for query in queries[FOR_ANALYSTS:]:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(query)
