"""Proof for the dbt data tests that each one finds the fault that it guards against."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.databases import Database, copy_database, fresh_database
from tests.support.loading import REAL, load, plan
from tests.support.project import BuildResult, DbtProject, Edit
from tests.support.warehouse import Event, Warehouse
from token_tracking.demo.usage import days_of_usage, ownerships

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from token_tracking.embedded.server import Server

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)
TODAY = NOON.date()
MARCH = date(2026, 3, 1)
FULL = "_full"
EVERYTHING = ("test", "--select", "tag:full")
OF_A_BUILD = ("test",)
BOTH_FORMS = ("test", "--select", "test_type:data")

Row = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """A database with a correct warehouse, which a test damages."""

    warehouse: Warehouse
    project: DbtProject

    def execute(self, *statements: str) -> None:
        with closing(self.warehouse.connect()) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]

    def found(self, test: str) -> list[Row]:
        """Return the rows that the newest run of a test kept."""
        with closing(self.warehouse.connect()) as connection:
            rows = connection.cursor(row_factory=dict_row).execute(
                f"select * from token_tracking_dbt_test__audit.{test}"  # type: ignore[arg-type]
            )
            return list(rows)

    def sees(self, test: str, *expected: Row, at_night: Sequence[Row] = ()) -> None:
        """Run both forms of a test; both must fail with these rows, the nightly one with more."""
        names = [test, test + FULL] if test + FULL in FORMS else [test]
        result = self.project.run("test", "--select", *names)
        assert result.statuses | dict.fromkeys(names, "fail") == result.statuses, result.messages
        for name in names:
            found = [{key: row[key] for key in expected[0]} for row in self.found(name)]
            rows = [*expected, *(at_night if name.endswith(FULL) else ())]
            assert sorted(found, key=repr) == sorted(rows, key=repr)


FORMS: set[str] = set()
NO_PARTS = (
    "input_tokens = 0, output_tokens = 0, cache_read_tokens = 0, cache_write_tokens = 0,"
    " cache_write_long_tokens = 0, reasoning_tokens = 0"
)


@pytest.fixture(scope="module")
def built(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A month of usage, and another build after a day with all the difficult cases."""
    with contextmanager(fresh_database)(server) as database:
        warehouse = Warehouse(database)
        project = DbtProject(
            {**database.env, "PGTZ": "Asia/Kolkata"}, tmp_path_factory.mktemp("built")
        )
        warehouse.insert(
            [Event(f"past-{days}", NOON - days * DAY, tokens=200_000) for days in range(1, 31)]
        )
        warehouse.record(
            "record_model_prices",
            *(
                {
                    "provider": "openai",
                    "model": "gpt-4o",
                    "token_kind": kind,
                    "amount": amount,
                    "valid_from": "2026-01-01T00:00Z",
                }
                for kind, amount in [("input", 2.5), ("cache_read", 1.25), ("output", 10)]
            ),
        )
        project.must("build", "--exclude-resource-type", "test")
        warehouse.insert(
            [
                Event("1", NOON, "acme", 300, input_tokens=200, output_tokens=50),
                Event("2", NOON, "acme", 400, agent="bot"),
                Event("3", NOON + HOUR, "blue", 500, agent="bot"),
                Event("4", NOON, "blue", 600, "embedding", "summarise", "ada"),
                Event("5", NOON, "blue", 999),
                Event("6", NOON, "blue", 400, "embedding", "summarise", "ada", output_tokens=100),
            ],
            voids=[("blue", "5")],
            owners=[
                ("bot", NOON - DAY, "wrong"),
                ("bot", NOON - DAY, "seller"),
                ("bot", NOON + HOUR, "buyer"),
            ],
        )
        for words in (("build",), EVERYTHING):
            statuses = project.must(*words).statuses
            assert set(statuses.values()) <= {"success", "pass", "no-op"}
        FORMS.update(statuses)
        dates = warehouse.rows("select distinct usage_date from token_tracking.rollup_changes")
        assert dates == [(TODAY,)], "the last build was to be a partial one"
        yield database


@pytest.fixture
def checked(server: Server, built: Database, tmp_path: Path) -> Iterator[Checked]:
    """A copy of it."""
    name = f"{built.env['PGDATABASE']}_copy"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        copy_database(connection, name, built.env["PGDATABASE"])
        copy = Database(server.url(name), server.environment(name))
        project = DbtProject({**copy.env, "PGTZ": "Asia/Kolkata"}, tmp_path)
        yield Checked(Warehouse(copy), project)
        connection.execute(f"drop database {name} with (force)")


BASE = "token_tracking.int_usage__hourly"
RAW = "token_tracking_raw.usage_events"
FIRST = (
    f"update {BASE} set {{}} where requester_tenant_id = 'acme' and agent_id is null"
    f" and usage_date = '{TODAY}'"
)
DROP_INDEXES = (
    "do $$ declare name text; begin for name in select indexrelid::regclass from pg_index"
    " where indrelid = '{0}'::regclass and not indisprimary"
    " loop execute 'drop index ' || name; end loop; end $$; "
)


@pytest.mark.parametrize(
    ("damage", "rows"),
    [
        (
            FIRST.format("tokens = tokens + 1"),
            [{"requester_tenant_id": "acme", "found_tokens": 301, "expected_tokens": 300}],
        ),
        (
            f"delete from {BASE} where model = 'ada'",
            [{"model": "ada", "found_tokens": None, "expected_tokens": 1000}],
        ),
        (
            f"delete from {RAW} where idempotency_key = '4'",
            [{"model": "ada", "found_tokens": 1000, "expected_tokens": 400}],
        ),
        (
            "delete from token_tracking_raw.usage_voids",
            [{"requester_tenant_id": "blue", "found_tokens": None, "expected_tokens": 999}],
        ),
        (
            FIRST.format("usage_date = usage_date + 1"),
            [
                {"usage_date": TODAY, "found_event_count": None, "expected_event_count": 1},
                {"usage_date": TODAY + DAY, "found_event_count": 1, "expected_event_count": None},
            ],
        ),
        (
            f"update {BASE} set operation = 'unknown', unmapped_operation = 'summarise'"
            " where model = 'ada'",
            [
                {"operation": "summarize", "unmapped_operation": None, "found_tokens": None},
                {"operation": "unknown", "unmapped_operation": "summarise", "found_tokens": 1000},
            ],
        ),
        (
            FIRST.format("event_count = event_count + 1"),
            [{"model": "gpt-4o", "found_event_count": 2, "expected_event_count": 1}],
        ),
        # The sums are right, but there are two rows where the grain allows one.
        (
            DROP_INDEXES.format(BASE)
            + f"update {BASE} set tokens = tokens / 2, input_tokens = input_tokens / 2,"
            " output_tokens = output_tokens / 2, cache_read_tokens = cache_read_tokens / 2,"
            " cache_write_tokens = cache_write_tokens / 2, cache_write_long_tokens = 0,"
            " reasoning_tokens = reasoning_tokens / 2, event_count = 1 where model = 'ada';"
            f" insert into {BASE} select * from {BASE} where model = 'ada'",
            [
                {
                    "model": "ada",
                    "found_tokens": 1000,
                    "expected_tokens": 1000,
                    "found_output_tokens": 300,
                    "expected_output_tokens": 300,
                    "found_repeated_rows": 1,
                    "expected_repeated_rows": 0,
                }
            ],
        ),
    ],
    ids=["more", "missing", "raw is gone", "void", "date", "label", "count", "repeated"],
)
def test_base_equals_raw(checked: Checked, damage: str, rows: list[Row]) -> None:
    checked.execute(damage)
    checked.sees("base_equals_raw_as_of_its_snapshot", *rows)


@pytest.mark.parametrize(
    ("damage", "rows"),
    [
        (
            f"update {BASE} set tenant_id = 'buyer' where tenant_id = 'seller'",
            [
                {"agent_id": "bot", "tenant_id": "buyer", "found_tokens": 400},
                {"agent_id": "bot", "tenant_id": "seller", "found_tokens": None},
            ],
        ),
        (
            f"update {BASE} set tenant_id = requester_tenant_id, attribution_rule = 'unknown_agent'"
            " where tenant_id = 'seller'",
            [
                {"attribution_rule": "agent_owner", "found_tokens": None, "expected_tokens": 400},
                {"attribution_rule": "unknown_agent", "found_tokens": 400, "expected_tokens": None},
            ],
        ),
        (
            f"update {BASE} set attribution_rule = 'agent_owner' where model = 'ada'",
            [
                {"agent_id": None, "attribution_rule": "agent_owner", "found_event_count": 2},
                {"agent_id": None, "attribution_rule": "requester", "found_event_count": None},
            ],
        ),
        # Attributed twice.
        (
            "create temporary table twice as"
            f" select * from {BASE} where tenant_id = 'buyer';"
            " update twice set tenant_id = 'blue', attribution_rule = 'unknown_agent';"
            f" insert into {BASE} select * from twice",
            [{"tenant_id": "blue", "found_event_count": 1, "expected_event_count": None}],
        ),
        # The models read the same rows: an owner that nobody recorded, an earlier revision.
        (
            "delete from token_tracking_raw.agent_owners where owner_tenant_id = 'seller'",
            [
                {"tenant_id": "seller", "found_tokens": 400, "expected_tokens": None},
                {"tenant_id": "wrong", "found_tokens": None, "expected_tokens": 400},
            ],
        ),
    ],
    ids=["another owner", "requester", "rule", "twice", "revision"],
)
def test_each_event_is_billed_once(checked: Checked, damage: str, rows: list[Row]) -> None:
    checked.execute(damage)
    checked.sees("each_event_is_billed_to_the_owner_of_its_time", *rows)


def test_payers_of_one_hour_cannot_change_places(checked: Checked) -> None:
    half_past = NOON + HOUR / 2
    checked.warehouse.insert(
        [
            Event("cheap", NOON, tokens=70, agent="cat", model="cheap"),
            Event("dear", half_past, tokens=70, agent="cat", model="dear"),
        ],
        owners=[("cat", NOON, "seller"), ("cat", half_past, "buyer")],
    )
    checked.project.must("build")
    checked.execute(
        f"update {BASE} set tenant_id = case tenant_id when 'seller' then 'buyer' else 'seller' end"
        " where agent_id = 'cat'"
    )
    checked.sees(
        "base_equals_raw_as_of_its_snapshot",
        *(
            {"tenant_id": payer, "model": model, "found_tokens": found, "expected_tokens": expected}
            for payer, model, found, expected in (
                ("buyer", "cheap", 70, None),
                ("buyer", "dear", None, 70),
                ("seller", "cheap", None, 70),
                ("seller", "dear", 70, None),
            )
        ),
    )


def test_one_event_per_key(checked: Checked) -> None:
    checked.execute(
        f"alter table {RAW} drop constraint usage_events_pkey",
        f"insert into {RAW} select * from {RAW} where idempotency_key = '1'",
    )
    row = {"requester_tenant_id": "acme", "idempotency_key": "1"}
    checked.sees("one_event_per_key", {**row, "found_events": 2, "expected_events": 1})


def test_a_view_has_one_row_per_key(checked: Checked) -> None:
    tests = [
        "unique_stg_usage__voids",
        "unique_stg_usage__agent_owners",
        "unique_usage_events",
        "unique_tenant_token_usage",
        "unique_unmapped_labels",
        "unique_build_status",
        "unique_tenant_agent_token_usage",
        "unique_agent_owner_periods",
        "unique_hourly_token_usage_now",
        "unique_daily_token_usage_now",
        "unique_monthly_token_usage_now",
    ]
    checked.warehouse.insert([Event("dance", NOON, operation="dance")])
    checked.execute(
        "insert into token_tracking_raw.tenant_readers (role_name, tenant_id)"
        " values (current_user, 'seller')"
    )
    checked.project.must("run")
    statuses = checked.project.must("test", "--select", *tests).statuses
    assert [statuses[test] for test in tests] == ["pass"] * len(tests)
    for test in tests:
        view = test.removeprefix("unique_")
        checked.execute(
            f"alter view token_tracking.{view} rename to once",
            f"create view token_tracking.{view} as select * from token_tracking.once"
            " union all select * from token_tracking.once",
            "alter view token_tracking.once rename to " + view[:20] + "_once",
        )
    statuses = checked.project.run("test", "--select", *tests).statuses
    assert [statuses[test] for test in tests] == ["fail"] * len(tests)
    for test in tests:
        rows = checked.found(test)
        assert {row["found_rows"] for row in rows} == {2}
        assert rows


@pytest.mark.parametrize(
    ("mart", "test"),
    [
        ("hourly_token_usage", "hourly_equals_sum_of_base"),
        ("daily_token_usage", "daily_equals_sum_of_hourly"),
        ("monthly_token_usage", "monthly_equals_sum_of_daily"),
        ("daily_agent_token_usage", "agents_equal_sum_of_base"),
    ],
)
def test_a_rollup_equals_the_sum_of_the_finer_one(checked: Checked, mart: str, test: str) -> None:
    """Larger, missing, surplus and repeated values, each on its own row."""
    table = f"token_tracking.{mart}"
    has_parts = mart != "daily_agent_token_usage"
    checked.execute(
        f"alter table {table} drop constraint if exists {mart}_pkey",
        DROP_INDEXES.format(table),
        f"create temporary table part as select * from {table} where tenant_id = 'seller'",
        "update part set tokens = 0" + f", {NO_PARTS}" * has_parts,
        f"insert into {table} select * from part",
        "update part set tenant_id = 'ghost', tokens = 7",
        f"insert into {table} select * from part",
        f"update {table} set tokens = tokens + 1 where tenant_id = 'buyer'",
    )
    # Of this payer, no build has changed anything.
    ghost = {"tenant_id": "ghost", "found_rows": 1, "found_tokens": 7, "expected_tokens": None}
    rows = [
        {"tenant_id": "seller", "found_rows": 2, "found_tokens": 400, "expected_tokens": 400},
        {"tenant_id": "buyer", "found_rows": 1, "found_tokens": 501, "expected_tokens": 500},
    ]
    if has_parts:
        checked.execute(f"delete from {table} where model = 'ada'")
        rows.append(
            {"tenant_id": "blue", "found_rows": 0, "found_tokens": None, "expected_tokens": 1000}
        )
    checked.sees(test, *rows, at_night=[ghost])


def test_a_cost_equals_the_hours_at_their_prices(checked: Checked) -> None:
    """Wrong, missing and surplus costs; a price that no build has seen is no difference."""
    table = "token_tracking.daily_token_cost"
    seller = "tenant_id = 'seller' and token_kind = 'input'"
    checked.execute(
        f"update {table} set cost = cost + 0.000001 where {seller}",
        f"delete from {table} where tenant_id = 'buyer' and token_kind = 'output'",
        f"update {table} set tenant_id = 'ghost' where tenant_id = 'blue' and token_kind = 'input'",
    )
    checked.warehouse.record(
        "record_model_prices",
        {
            "provider": "openai",
            "model": "gpt-4o",
            "token_kind": "output",
            "amount": 20,
            "valid_from": "2026-01-01T00:00Z",
        },
    )
    [(right,)] = checked.warehouse.rows(f"select cost - 0.000001 from {table} where {seller}")
    rows = [
        {"tenant_id": "seller", "found_cost": right + Decimal("0.000001"), "expected_cost": right},
        {"tenant_id": "buyer", "found_cost": None, "expected_cost": Decimal("0.00125")},
        {"tenant_id": "blue", "found_cost": None, "expected_cost": 0},
    ]
    ghost = {"tenant_id": "ghost", "found_cost": 0, "expected_cost": None}
    checked.sees("daily_cost_equals_recount", *rows, at_night=[ghost])
    checked.sees("daily_cost_follows_prices", *rows)
    months = [
        {
            "tenant_id": row["tenant_id"],
            "found_cost": row["expected_cost"],
            "expected_cost": row["found_cost"],
        }
        for row in (*rows, ghost)
    ]
    checked.sees("monthly_cost_equals_sum_of_daily", *months[:3], at_night=months[3:])


def test_context_bounds_are_listed(checked: Checked) -> None:
    """A bound that is in no list is told until the price has ended from its first hour on."""
    test = "context_bounds_are_listed"
    of_kind = {"provider": "openai", "model": "gpt-4o", "token_kind": "input", "amount": 5}
    known, unknown = (
        {**of_kind, "context_over": bound, "valid_from": "2026-02-01T00:00Z"}
        for bound in (272_000, 272_001)
    )
    checked.warehouse.record("record_model_prices", known, unknown)
    checked.sees(test, {"model": "gpt-4o", "context_over": 272_001, "amount": 5})
    bounds = [272_000, 272_001]
    statuses = checked.project.must("test", "--select", test, context_bounds=bounds).statuses
    assert statuses[test] == "pass"
    checked.warehouse.record("record_model_prices", {**unknown, "amount": None})
    assert checked.project.must("test", "--select", test).statuses[test] == "pass"


@pytest.mark.parametrize(
    ("damage", "negative"),
    [
        ("cache_read_tokens = input_tokens + 1", "least_input"),
        ("cache_write_long_tokens = cache_write_tokens + 2", "least_cache_write"),
        ("reasoning_tokens = output_tokens + 3", "least_output"),
        ("input_tokens = tokens + 4", "least_unsplit"),
    ],
)
def test_no_kind_of_tokens_is_negative(checked: Checked, damage: str, negative: str) -> None:
    table = "token_tracking.daily_token_usage"
    checked.execute(
        f"alter table {table} drop constraint parts_within_tokens",
        f"update {table} set {damage} where model = 'ada'",
    )
    checked.sees("kinds_add_up_to_tokens", {"tenant_id": "blue", "tokens": 1000})
    for name in ("kinds_add_up_to_tokens", "kinds_add_up_to_tokens_full"):
        [row] = checked.found(name)
        assert int(row[negative]) < 0


@pytest.mark.parametrize(
    ("test", "damage", "row"),
    [
        (
            "every_total_agrees",
            "update token_tracking.hourly_token_usage set tokens = tokens + 1"
            " where tenant_id = 'buyer'",
            {
                "tenant_id": "buyer",
                "raw_events_tokens": 500,
                "base_tokens": 500,
                "hourly_tokens": 501,
            },
        ),
        (
            "payers_pay_what_requesters_used",
            "update token_tracking.hourly_token_usage set tokens = tokens - 1"
            " where tenant_id = 'buyer'",
            {"usage_hour": NOON + HOUR, "payers_tokens": 499, "requesters_tokens": 500},
        ),
        (
            "every_total_agrees_full",
            "update token_tracking.monthly_token_usage set tokens = tokens + 1"
            " where tenant_id = 'buyer'",
            {"raw_events_tokens": 500, "daily_tokens": 500, "monthly_tokens": 501},
        ),
        (
            "payers_pay_what_requesters_used_full",
            "update token_tracking.daily_token_usage set tokens = tokens - 1"
            " where tenant_id = 'buyer'",
            {"usage_date": TODAY, "payers_tokens": 2199, "requesters_tokens": 2200},
        ),
        (
            "tenants_equal_sum_of_months",
            "create or replace view token_tracking.tenant_token_usage as"
            " select tenant_id, llm_tokens, embedding_tokens, fine_tuning_tokens,"
            " unknown_tokens, tokens, event_count, first_used_on, last_used_on"
            " from (select 'buyer' as tenant_id, 501::bigint as llm_tokens) as wrong, lateral"
            " (select 0::bigint as embedding_tokens, 0::bigint as fine_tuning_tokens,"
            " 0::bigint as unknown_tokens, 500::bigint as tokens, 1::bigint as event_count,"
            f" date '{TODAY}' as first_used_on, date '{TODAY}' as last_used_on) as rest",
            {
                "tenant_id": "buyer",
                "token_type": "llm",
                "found_tokens": 501,
                "expected_tokens": 500,
            },
        ),
        (
            "unmapped_labels_equal_base",
            "create or replace view token_tracking.unmapped_labels as select 'operation' as"
            " label_kind, 'dance'::text as label, 7::bigint as tokens, 1::bigint as event_count",
            {"label": "dance", "found_tokens": 7, "expected_tokens": None},
        ),
        (
            "labels_agree",
            "update token_tracking.label_aliases set label = 'sum' where alias = 'summarise'",
            {"label_kind": "operation", "alias": "summarise", "label": "sum"},
        ),
    ],
)
def test_of_everything_or_of_all_that_changed(
    checked: Checked, test: str, damage: str, row: Row
) -> None:
    checked.execute(damage)
    result = checked.project.run("test", "--select", test)
    assert result.statuses[test] == "fail"
    assert row in [{key: found[key] for key in row} for found in checked.found(test)]


def test_a_tenant_in_all_that_is_told_of_it(checked: Checked) -> None:
    checked.warehouse.insert([Event("idle", NOON, "idle", tokens=0)])
    checked.project.must("build")
    view = "token_tracking.tenant_token_usage"
    [(query,)] = checked.warehouse.rows(f"select pg_get_viewdef('{view}'::regclass)")
    checked.execute(
        f"create or replace view {view} as select tenant_id, llm_tokens, embedding_tokens,"
        " fine_tuning_tokens, unknown_tokens, tokens,"
        " event_count + (tenant_id = 'buyer')::int as event_count,"
        " first_used_on - (tenant_id = 'seller')::int as first_used_on, last_used_on"
        f" from ({query.rstrip(';')}) as own where tenant_id <> 'idle'"
        f" union all select 'blue', 0, 0, 0, 0, 0, 0, date '{TODAY}', date '{TODAY}'"
    )

    def row(tenant: str, first: date, rows: int, *events: int | None) -> Row:
        names = ("tenant_id", "first_used_on", "found_rows", "found_event_count")
        return dict(
            zip((*names, "expected_event_count"), (tenant, first, rows, *events), strict=True)
        )

    checked.sees(
        "tenants_equal_sum_of_months",
        row("blue", TODAY, 2, 2, 2),
        row("buyer", TODAY, 1, 2, 1),
        row("idle", TODAY, 0, None, 1),
        row("seller", TODAY, 0, None, 1),
        row("seller", TODAY - DAY, 1, 1, None),
    )


def test_labels_of_the_list_and_of_the_type(checked: Checked) -> None:
    checked.execute("create type token_tracking.of_an_analyst as enum ('a')")
    own = checked.project.must("test", "--select", "labels_agree")
    assert own.statuses["labels_agree"] == "pass"
    checked.execute("alter type token_tracking.token_type add value 'video'")
    refused = checked.project.run("test", "--select", "labels_agree")
    assert "was [llm, embedding, fine_tuning, unknown, video]" in refused.said
    # The start of every command would add a missing label, and refuses an extra one.
    unprepared = Edit("macros/protocol/prepare_warehouse.sql", "{% do create_enum_types() %}", "")
    project = DbtProject(checked.project.env, checked.project.scratch, (unprepared,))
    types = ["llm", "embedding", "fine_tuning", "unknown", "image"]
    result = project.run("test", "--select", "labels_agree", token_types=types)
    assert result.statuses["labels_agree"] == "fail"
    differ = "the list and the type differ"
    assert sorted(tuple(row.values()) for row in checked.found("labels_agree")) == [
        (differ, "token_type", None, "image", True, False),
        (differ, "token_type", None, "video", False, True),
    ]


MARTS = {
    "int_usage__hourly": f"usage_hour = '{NOON}'",
    "hourly_token_usage": f"usage_hour = '{NOON}'",
    "daily_token_usage": f"usage_date = '{TODAY}'",
    "monthly_token_usage": f"usage_month = '{MARCH}'",
}
GROWS = "months_grow_by_new_events"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("tokens = tokens + 7, event_count = event_count + 1", (2321, 33)),
        ("tokens = tokens - 7, event_count = event_count - 1", (2307, 31)),
        ("event_count = event_count + 1", (2314, 33)),
        ("input_tokens = input_tokens + 1", (2314, 32)),
    ],
    ids=["twice", "left out", "count", "part"],
)
def test_a_month_grows_by_what_is_new(
    checked: Checked, damage: str, found: tuple[int, int]
) -> None:
    """All marts agree on a wrong total, in an hour that no test has to count again yet."""
    checked.warehouse.insert([Event(f"more-{number}", NOON) for number in range(20)])
    checked.project.must("build")
    checked.warehouse.insert([Event("7", NOON, "acme", 7)])
    checked.project.must("run")
    assert "fail" not in checked.project.must("test").statuses.values()
    checked.warehouse.insert([Event("8", NOON, "acme", 7)])
    checked.project.must("run")
    for mart, period in MARTS.items():
        checked.execute(
            f"update token_tracking.{mart} set {damage} where tenant_id = 'acme' and {period}"
        )
    statuses = checked.project.run("test").statuses
    failing = {test for test, status in statuses.items() if status == "fail"}
    # Costs are counted from the base, and were not changed here.
    assert failing - {"daily_cost_equals_recount", "daily_cost_follows_prices"} == {GROWS}
    [row] = checked.found(GROWS)
    past = 9 * 200_000
    assert (row["tenant_id"], row["found_tokens"] - past, row["found_event_count"]) == (
        "acme",
        *found,
    )
    assert row["expected_tokens"] - past == 2314
    # The next build goes on from the last success.
    checked.warehouse.insert([Event("9", NOON, "acme", 7)])
    assert checked.project.run("build").statuses[GROWS] == "fail"


def test_a_month_grows_by_corrections(checked: Checked) -> None:
    """Voids of counted and of new events, another owner of the past, a payer that loses all."""
    checked.project.must("build")
    checked.warehouse.insert(
        [
            Event("7", NOON, "acme", 7),
            Event("8", NOON - DAY, "blue", 8, agent="bot"),
            Event("9", NOON, "green", 9),
        ],
        voids=[("blue", "4"), ("green", "9"), ("acme", "past-3")],
        owners=[("bot", NOON - DAY, "late"), ("bot", NOON + HOUR, None)],
    )
    result = checked.project.must("build")
    assert result.statuses[GROWS] == "pass"
    checked.project.must(*EVERYTHING)
    proved = checked.warehouse.rows("select * from token_tracking.proved_totals order by 1, 2, 5")
    assert proved == checked.warehouse.rows(
        "select usage_month, tenant_id, token_type::text, operation::text, model, tokens,"
        " input_tokens, output_tokens, event_count, cache_read_tokens, cache_write_tokens,"
        " cache_write_long_tokens, reasoning_tokens"
        " from token_tracking.monthly_token_usage order by 1, 2, 5"
    )
    checked.execute(
        "update token_tracking.monthly_token_usage set tokens = tokens + 1 where tenant_id = 'late'"
    )
    checked.project.run("test", "--select", GROWS)
    assert [row["tenant_id"] for row in checked.found(GROWS)] == ["late"]


def test_an_hour_is_counted_again_when_it_has_grown_by_half(checked: Checked) -> None:
    project, warehouse = checked.project, checked.warehouse
    project.must("build")
    due = (
        "select event_count::int, due_count::int, due_run >="
        " (select max(run_no) from token_tracking.rollup_changes)"
        f" from token_tracking.build_hours where usage_hour = '{NOON}'"
    )
    for number, (more, expected) in enumerate(
        [(1, (5, 4, False)), (1, (6, 6, True)), (2, (8, 6, False)), (1, (9, 9, True))]
    ):
        warehouse.insert([Event(f"{number}-{one}", NOON) for one in range(more)])
        project.must("run")
        assert warehouse.rows(due) == [expected], number
    # So does an hour in which something counted changes.
    warehouse.insert([Event("last", NOON, model="other")], voids=[("acme", "0-0")])
    project.must("run")
    assert warehouse.rows(due) == [(9, 9, True)]
    warehouse.insert([Event("few", NOON)])
    project.must("run")
    assert warehouse.rows(due) == [(10, 9, False)]


def test_what_a_build_did_not_change_is_compared_at_night(checked: Checked) -> None:
    old = (
        "update token_tracking.monthly_token_usage set tokens = tokens + 1"
        f" where usage_month < '{MARCH}'"
    )
    checked.execute(old)
    assert "fail" not in checked.project.must(*OF_A_BUILD).statuses.values()
    failing = {
        test
        for test, status in checked.project.run(*EVERYTHING).statuses.items()
        if status == "fail"
    }
    expected = {"monthly_equals_sum_of_daily_full", "every_total_agrees_full"}
    assert failing == expected | {"tenants_equal_sum_of_months"}
    # The copy has another identity, so this build rebuilds everything, and compares it.
    checked.project.must("build")
    checked.execute(old)
    assert checked.project.run(*OF_A_BUILD).statuses["monthly_equals_sum_of_daily"] == "fail"
    # The next build finds nothing new, and does not compare all history again.
    checked.project.must("build")


def test_doubts_are_warnings_with_rows(checked: Checked) -> None:
    """Also that the tables with the rows stay, with readers' views, when two builds fill them."""
    checked.warehouse.insert(
        [
            Event("dance", NOON, "acme", 11, operation="dance"),
            Event("video", NOON, "acme", 12, token_type="video"),
            Event("nobody", NOON, "blue", 13, agent="stray"),
            Event("much", NOON, "acme", 2_000_000),
        ]
    )
    usage = [
        {"tenant_id": "acme", "idempotency_key": "1", "tokens": 301, "model": "gpt-4o"},
        {"tenant_id": "acme", "idempotency_key": "bad", "tokens": -1},
    ]
    checked.execute(
        "select token_tracking_raw.track_token_usage_batch('" + json.dumps(usage) + "')",
        "create view public.mine as select * from token_tracking_dbt_test__audit.unknown_agents",
    )
    doubts = {
        "conflicting_payloads": [
            {"idempotency_key": "1", "counted_tokens": 300, "refused_tokens": 301}
        ],
        "rejected_payloads": [{"rejected_payloads": 1}],
        "unmapped_labels_in_use": [
            {"label_kind": "operation", "label": "dance", "tokens": 11, "event_count": 1},
            {"label_kind": "token_type", "label": "video", "tokens": 12, "event_count": 1},
        ],
        "unknown_agents": [{"agent_id": "stray", "requester_tenant_id": "blue", "tokens": 13}],
        "tenfold_usage": [
            {"usage_date": TODAY, "tenant_id": "acme", "tokens": 2_000_323, "usual_tokens": 200_000}
        ],
    }

    def see(result: BuildResult, form: str) -> None:
        assert result.green, result.said
        warned = {test for test, status in result.statuses.items() if status == "warn"}
        assert warned == {test + form for test in doubts}
        for test, rows in doubts.items():
            found = [{key: row[key] for key in rows[0]} for row in checked.found(test + form)]
            assert sorted(found, key=repr) == rows

    see(checked.project.run("build"), "")
    for build in [checked.project.start(*OF_A_BUILD) for _ in range(2)]:
        assert build.wait().green
    see(checked.project.run(*EVERYTHING), FULL)
    assert checked.warehouse.rows("select agent_id, tokens from public.mine") == [("stray", 13)]


def test_ids_that_look_alike_are_told_with_their_tokens(checked: Checked) -> None:
    """Payers, callers, agents and models; both forms, and the plain one only of what changed."""
    alike = {
        "tenant": ["acme", "Acme ", "ac\u200bme", "caf\u00e9", "cafe\u0301", "CAF\u00c9"],
        "agent": ["bot-7", "BOT-7\u00a0"],
        "model": ["gpt-4o", "GPT-4o"],
    }
    checked.warehouse.insert(
        [Event(f"t{number}", NOON, tenant) for number, tenant in enumerate(alike["tenant"][1:])]
        + [
            Event(f"a{number}", NOON, "blue", agent=agent)
            for number, agent in enumerate(alike["agent"])
        ]
        + [Event("m", NOON, "blue", model="GPT-4o"), Event("c", NOON, "Blue", agent="bot")]
    )
    ids = {(kind, name) for kind, names in alike.items() for name in names}
    ids |= {("tenant", "blue"), ("tenant", "Blue")}  # who called by an agent that another one owns
    statuses = checked.project.must("build").statuses
    assert statuses["ids_that_look_alike"] == "warn"
    statuses = checked.project.must(*EVERYTHING).statuses
    assert statuses["ids_that_look_alike_full"] == "warn"
    for form in ("", FULL):
        rows = checked.found("ids_that_look_alike" + form)
        assert {(row["id_kind"], row["id"]) for row in rows} == ids
        tokens = {(row["id_kind"], row["id"]): row["tokens"] for row in rows}
        assert tokens["tenant", "Acme "] == 100
        assert tokens["tenant", "Blue"] == 100
        assert tokens["model", "GPT-4o"] == 100
        assert len({row["spelling"] for row in rows}) == len(ids)
        assert all(row["spelling"].isascii() for row in rows)
    # Only the nightly form reports a month that no build has touched since.
    checked.warehouse.insert([Event("later", NOON + 40 * DAY, "new")])
    checked.project.must("build")
    assert checked.found("ids_that_look_alike") == []
    assert checked.project.must(*EVERYTHING).statuses["ids_that_look_alike_full"] == "warn"


def test_two_builds_at_once_keep_the_rows_of_doubts(checked: Checked) -> None:
    checked.execute("drop schema token_tracking_dbt_test__audit cascade")
    for number in range(2):
        checked.warehouse.insert([Event(f"dance-{number}", NOON, "acme", 11, operation="dance")])
        for build in [checked.project.start("build") for _ in range(2)]:
            result = build.wait()
            assert result.green, result.said
            assert result.statuses["unmapped_labels_in_use"] == "warn"
        [row] = checked.found("unmapped_labels_in_use")
        assert row["event_count"] == number + 1


def test_an_older_doubt_is_for_the_night(checked: Checked) -> None:
    checked.execute(
        "insert into token_tracking_raw.usage_event_rejections (rejection_key, reason, recorded_at)"
        " values ('x', 'tokens: found -1', now() - interval '2 days')",
        "insert into token_tracking_raw.usage_event_conflicts (tenant_id, idempotency_key,"
        " payload_hash, tokens, token_type, operation, metadata, occurred_at, recorded_at)"
        " select tenant_id, idempotency_key, 'x', 7, 'llm', 'query', '{}', now(),"
        f" now() - interval '2 days' from {RAW} where idempotency_key in ('1', '5')",
    )
    tests = ["conflicting_payloads", "rejected_payloads"]
    statuses = checked.project.must(
        "test", "--select", *tests, *(test + FULL for test in tests)
    ).statuses
    assert [statuses[test] for test in tests] == ["pass", "pass"]
    assert [statuses[test + FULL] for test in tests] == ["warn", "warn"]
    # That of the voided key is settled.
    [conflict] = checked.found("conflicting_payloads_full")
    assert conflict["idempotency_key"] == "1"


def test_no_events_are_nothing_to_check(database: Database, tmp_path: Path) -> None:
    checked = Checked(Warehouse(database), DbtProject(database.env, tmp_path))
    for words in (("build",), EVERYTHING):
        result = checked.project.must(*words)
        assert result.statuses["nothing_to_check"] == "warn"
        [row] = checked.found("nothing_to_check")
        assert row["finding"] == "nothing to check: no event is counted"


def test_a_rollup_that_is_behind_is_not_compared_which_is_said(checked: Checked) -> None:
    checked.execute(
        "update token_tracking.build_state set run_no = run_no - 1"
        " where model = 'monthly_token_usage'",
        "update token_tracking.monthly_token_usage set tokens = tokens + 1",
    )
    statuses = checked.project.must(*OF_A_BUILD).statuses
    assert statuses["monthly_equals_sum_of_daily"] == "pass"
    assert statuses["nothing_to_check"] == "warn"
    [row] = checked.found("nothing_to_check")
    assert row["model"] == "monthly_token_usage"
    assert row["run_number_of_base"] == row["run_number"] + 1


def test_aliases_since_the_build_are_no_difference(checked: Checked) -> None:
    checked.execute(
        "update token_tracking.label_aliases set label = 'extraction' where alias = 'summarise'"
    )
    for words, form in ((OF_A_BUILD, ""), (EVERYTHING, FULL)):
        statuses = checked.project.must(*words).statuses
        assert statuses["base_equals_raw_as_of_its_snapshot" + form] == "pass"
        assert statuses["nothing_to_check"] == "warn"
        [row] = checked.found("nothing_to_check")
        assert row["finding"] == "nothing to check: label_aliases changed since the build"
    # With these aliases the past is recounted, and compared.
    checked.project.must("run")
    assert checked.project.must(*EVERYTHING).statuses["nothing_to_check"] == "pass"
    checked.execute(f"update {BASE} set operation = 'summarize' where operation = 'extraction'")
    failed = checked.project.run(*EVERYTHING).statuses
    assert failed["base_equals_raw_as_of_its_snapshot_full"] == "fail"


def test_events_since_the_build_are_no_difference(checked: Checked) -> None:
    with closing(checked.warehouse.connect(autocommit=False)) as late:
        checked.warehouse.insert([Event("late", NOON)], connection=late)
        checked.warehouse.insert(
            [Event("new", NOON, agent="bot")],
            voids=[("acme", "1")],
            owners=[("bot", NOON - DAY, "corrected")],
        )
        late.commit()
    assert set(checked.project.must(*BOTH_FORMS).statuses.values()) <= {"success", "pass", "no-op"}


# The design that this project replaces: counters, and a trigger that does not fire for the update
# of an upsert.
COUNTERS = """
create table daily_counter (
    usage_date date, tenant_id text, token_type text, operation text, model text, tokens bigint,
    primary key (usage_date, tenant_id, token_type, operation, model)
);
create table monthly_counter (
    usage_month date, tenant_id text, token_type text, operation text, model text, tokens bigint,
    primary key (usage_month, tenant_id, token_type, operation, model)
);
create function add_to_month() returns trigger language plpgsql as $$
begin
    insert into monthly_counter
    values (
        date_trunc('month', new.usage_date::timestamp), new.tenant_id, new.token_type,
        new.operation, new.model, new.tokens
    )
    on conflict (usage_month, tenant_id, token_type, operation, model)
    do update set tokens = monthly_counter.tokens + excluded.tokens;
    return new;
end
$$;
create trigger add_to_month after insert on daily_counter
for each row execute function add_to_month();
do $$
declare
    event record;
begin
    for event in
        select * from token_tracking.usage_events order by occurred_at, idempotency_key
    loop
        insert into daily_counter
        values (
            event.usage_date, event.tenant_id, event.token_type, event.operation, event.model,
            event.tokens
        )
        on conflict (usage_date, tenant_id, token_type, operation, model)
        do update set tokens = daily_counter.tokens + excluded.tokens;
    end loop;
end
$$;
update token_tracking.monthly_token_usage as monthly
set
    tokens = counted.tokens, input_tokens = 0, output_tokens = 0, cache_read_tokens = 0,
    cache_write_tokens = 0, cache_write_long_tokens = 0, reasoning_tokens = 0
from monthly_counter as counted
where
    (monthly.usage_month, monthly.tenant_id, monthly.token_type::text, monthly.operation::text)
    = (counted.usage_month, counted.tenant_id, counted.token_type, counted.operation)
    and monthly.model = counted.model
    and monthly.tokens <> counted.tokens;
"""


def test_a_monthly_counter_by_trigger_is_reported_to_the_token(checked: Checked) -> None:
    events = [
        Event(f"{tenant}-{number}", NOON + number * HOUR, tenant, 10**place + number)
        for place, tenant in enumerate(("acme", "blue", "coal"), start=2)
        for number in range(60)
    ]
    checked.warehouse.insert(events)
    checked.project.must("build")
    # By hand: a month includes only the first event of each day.
    first: dict[tuple[str, date, str], int] = {}
    truth: Counter[str] = Counter()
    for tenant, day, labels, tokens in checked.warehouse.rows(
        "select tenant_id, usage_date, concat_ws(' ', token_type, operation, model), tokens"
        " from token_tracking.usage_events order by occurred_at, idempotency_key"
    ):
        first.setdefault((tenant, day, labels), tokens)
        truth[tenant] += tokens
    wrong: Counter[str] = Counter()
    for (tenant, _, _), tokens in first.items():
        wrong[tenant] += tokens
    checked.execute(COUNTERS)

    failed = checked.project.run(*EVERYTHING).statuses
    assert failed["monthly_equals_sum_of_daily_full"] == failed["every_total_agrees_full"] == "fail"
    reported = {
        row["tenant_id"]: (int(row["monthly_tokens"]), int(row["raw_events_tokens"]))
        for row in checked.found("every_total_agrees_full")
        if row["tenant_id"] is not None
    }
    different = {tenant for tenant in truth if wrong[tenant] != truth[tenant]}
    assert different >= {"acme", "blue", "coal"}
    assert reported == {tenant: (wrong[tenant], truth[tenant]) for tenant in different}
    by_grain: Counter[str] = Counter()
    for row in checked.found("monthly_equals_sum_of_daily_full"):
        by_grain[row["tenant_id"]] += int(row["expected_tokens"] - row["found_tokens"])
    assert by_grain == {tenant: truth[tenant] - wrong[tenant] for tenant in different}


def test_every_test_was_seen_to_find_something(built: Database) -> None:
    seen = Path(__file__).read_text()
    names = {name.removesuffix(FULL) for name in FORMS if not name.startswith("token_tracking-on")}
    assert len(names) >= 18
    assert {name for name in names if f'"{name}"' not in seen} == set()


def test_green_over_the_demos_usage(database: Database, tmp_path: Path) -> None:
    checked = Checked(Warehouse(database), DbtProject(database.env, tmp_path))
    end = date(2026, 3, 1)
    with closing(checked.warehouse.connect()) as connection:
        for owner in ownerships(end):
            connection.execute(
                "select token_tracking_raw.record_agent_owner(%s, %s, %s)",
                (owner.agent_id, owner.owner_tenant_id, owner.valid_from),
            )
        for day in days_of_usage(end, seed=3, size=0.1):
            calls = [*day.calls, *day.retries, *day.contradictions, *day.mistakes]
            connection.execute(
                "select token_tracking_raw.track_token_usage_batch(%s::json)",
                (json.dumps(calls, default=str),),
            )
            for voided in day.voided:
                connection.execute(
                    "select token_tracking_raw.void_token_usage(%s, %s, %s)",
                    (voided.tenant_id, voided.idempotency_key, voided.reason),
                )
    # At a tenth of the size one job of fine-tuning is ten times a day's usage.
    doubts = {
        "conflicting_payloads",
        "rejected_payloads",
        "unmapped_labels_in_use",
        "unknown_agents",
        "tenfold_usage",
    }
    for words, form in ((("build",), ""), (EVERYTHING, FULL)):
        statuses = checked.project.must(*words).statuses
        warned = {test for test, status in statuses.items() if status == "warn"}
        assert warned == {doubt + form for doubt in doubts}
    assert checked.warehouse.rows("select count(*) > 10000 from token_tracking.usage_events") == [
        (True,)
    ]


@pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL.name}: it is no part of this repository")
def test_green_over_a_real_trace(database: Database, tmp_path: Path) -> None:
    columns = "occurred_at=TIMESTAMP,input_tokens=ContextTokens,output_tokens=GeneratedTokens"
    load(database, REAL, plan(columns, "tenant_id=acme,model=gpt-4o", is_whole=True))
    checked = Checked(Warehouse(database), DbtProject(database.env, tmp_path))
    for words in (("build",), EVERYTHING):
        assert set(checked.project.must(*words).statuses.values()) <= {"success", "pass", "no-op"}
    counted = "select sum(event_count) from token_tracking.monthly_token_usage"
    assert checked.warehouse.rows(counted) == [(19_366,)]


def test_source_freshness(checked: Checked) -> None:
    def status() -> str:
        return checked.project.run("source", "freshness").statuses["usage_events"]

    assert status() == "pass"
    checked.warehouse.insert(
        [Event(f"many-{number}", NOON + number * INSTANT) for number in range(1100)]
    )
    checked.execute(f"update {RAW} set recorded_at = recorded_at - interval '25 hours'")
    assert status() == "warn"
    # Usage that is recorded a year late is new, also when other transactions came since.
    checked.warehouse.insert([Event("late", NOON - 365 * DAY)])
    assert status() == "pass"
    checked.execute(*["select pg_current_xact_id()"] * 1100)
    assert status() == "pass"
    checked.execute(f"truncate {RAW}")
    assert status() == "warn"
