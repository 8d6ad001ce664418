"""The guards of the totals: tests that can fail, helpful refusals, no harm to others' work."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support import ROOT
from tests.support.commands import forked_command
from tests.support.databases import copy_database
from tests.support.oracle import OPERATIONS, TOKEN_TYPES, Settings
from tests.support.project import DbtProject, Edit
from tests.support.warehouse import Event, Warehouse

if TYPE_CHECKING:
    from tests.support.databases import Database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
UNIT_TESTS = ("test", "--select", "test_type:unit")


def execute(warehouse: Warehouse, *statements: str) -> None:
    with closing(warehouse.connect()) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def test_events_since_the_build_are_no_difference(
    project: DbtProject, warehouse: Warehouse
) -> None:
    project.must("run")
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON)], voids=[("acme", "1")])
    project.must("test")


def test_unit_tests_pass_and_take_no_turn_at_a_build(project: DbtProject) -> None:
    built = project.must("build")
    unit_tests = project.must(*UNIT_TESTS)
    names = set(unit_tests.statuses) - set(built.statuses)
    assert len(names) >= 10


@pytest.mark.parametrize(
    ("file", "right", "wrong", "failing"),
    [
        (
            "macros/billing_calendar.sql",
            "at time zone '{{ var('billing_timezone') | replace(\"'\", \"''\") }}'",
            "at time zone 'UTC'",
            {
                "the_day_that_loses_an_hour",
                "the_day_that_gains_an_hour",
                "midnight_in_the_middle_of_an_hour",
                "year_end_in_kathmandu",
            },
        ),
        (
            "macros/billing_calendar.sql",
            "({{ instant }} at",
            "(({{ instant }} + interval '1 microsecond') at",
            {
                "a_day_ends_at_midnight",
                "the_day_that_loses_an_hour",
                "the_day_that_gains_an_hour",
                "midnight_in_the_middle_of_an_hour",
                "year_end_in_kathmandu",
            },
        ),
        (
            "macros/attributed_events.sql",
            "agent_owners.valid_from <= events.occurred_at",
            "agent_owners.valid_from < events.occurred_at",
            {"the_owner_of_that_microsecond_pays"},
        ),
        (
            "macros/attributed_events.sql",
            "agent_owners.revision desc",
            "agent_owners.revision",
            {"the_highest_revision_of_an_instant_wins"},
        ),
        (
            "macros/attributed_events.sql",
            "where label_kind = 'token_type'",
            "where label_kind = 'operation'",
            {"labels_aliases_and_the_unknown"},
        ),
        (
            "macros/attributed_events.sql",
            "and voids.idempotency_key = events.idempotency_key",
            "",
            {"a_voided_event_does_not_count"},
        ),
        (
            "macros/billing_calendar.sql",
            "date_trunc('month'",
            "date_trunc('year'",
            {"a_month_is_its_days"},
        ),
    ],
)
def test_unit_test_sees_a_mistake(
    prebuilt: Database, tmp_path: Path, file: str, right: str, wrong: str, failing: set[str]
) -> None:
    mistaken = DbtProject(prebuilt.env, tmp_path, (Edit(file, right, wrong),))
    statuses = mistaken.run(*UNIT_TESTS).statuses
    assert {name for name, status in statuses.items() if status == "fail"} == failing


def test_a_new_label_appears_and_takes_its_past(project: DbtProject, database: Database) -> None:
    types = (*TOKEN_TYPES[:-1], "image", "unknown")
    operations = ("rerank", *OPERATIONS)
    warehouse = Warehouse(database, Settings(token_types=types, operations=operations))
    warehouse.insert([Event("1", NOON, token_type="image", operation="rerank")])
    project.must("build")
    assert len(warehouse.marts()["unmapped_labels"]) == 2
    execute(
        warehouse, "create view public.mine as select tokens from token_tracking.tenant_token_usage"
    )
    for _ in range(2):
        project.must("build", token_types=list(types), operations=list(operations))
        assert warehouse.check()["unmapped_labels"] == []
    assert warehouse.rows("select image_tokens from token_tracking.tenant_token_usage") == [(100,)]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([label for label in TOKEN_TYPES if label != "embedding"], "cannot remove or reorder"),
        (["embedding", "llm", "fine_tuning", "unknown"], "alter type"),
        ([label for label in TOKEN_TYPES if label != "unknown"], "needs the label 'unknown'"),
        ([*TOKEN_TYPES, "llm"], "each once"),
        ([*TOKEN_TYPES, "it's"], "lower case letters"),
    ],
)
def test_a_list_that_cannot_be_is_refused(
    project: DbtProject, warehouse: Warehouse, labels: list[str], says: str
) -> None:
    project.must("run")
    refused = project.run("run", token_types=labels)
    assert not refused.green
    assert says in refused.said
    project.must("run")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("price_lists", ["list", "list"], "each once"),
        ("price_lists", "list", 'is "list"'),
        ("price_lists", ["list", ""], "names of price lists"),
        ("price_lists", [1], "names of price lists"),
        ("context_bounds", ["32000"], "whole and not negative"),
        ("context_bounds", [32000, 32000], "each once"),
        ("context_bounds", [-1], "whole and not negative"),
        ("context_bounds", [True], "whole and not negative"),
        ("context_bounds", 32000, "a list of numbers"),
    ],
)
def test_a_variable_of_costs_that_cannot_be_is_refused(
    project: DbtProject, variable: str, value: object, says: str
) -> None:
    refused = project.run("run", **{variable: value})
    assert not refused.green
    assert f"The variable '{variable}' is " in refused.said
    assert says in refused.said


def test_an_older_raw_schema_is_told_with_the_command_that_upgrades_it(
    project: DbtProject, warehouse: Warehouse
) -> None:
    execute(warehouse, "drop table token_tracking_raw.tenant_price_lists cascade")
    assert "run `token-tracking schema apply`" in project.run("run").said


@pytest.mark.parametrize(
    ("migration", "labels"),
    [
        # "To remove or reorder one"
        ("drop schema token_tracking cascade", ["unknown", "embedding", "llm"]),
        # "To rename one"
        (
            "alter type {type} rename value 'fine_tuning' to 'tuning'",
            ["llm", "embedding", "tuning", "unknown"],
        ),
    ],
    ids=["remove", "rename"],
)
def test_a_list_changes_in_the_way_that_the_refusal_tells(
    project: DbtProject, database: Database, migration: str, labels: list[str]
) -> None:
    # `dbt run` skips the seed of aliases, some of which would have to be removed.
    warehouse = Warehouse(database, Settings(token_types=tuple(labels), aliases={}))
    warehouse.insert([Event(label, NOON, token_type=label) for label in {*TOKEN_TYPES, *labels}])
    project.must("run")
    refused = project.run("run", token_types=labels).said
    [enum_type] = re.findall(r"alter type (\S+) rename value", refused)
    assert "drop the schema 'token_tracking'" in refused
    execute(warehouse, migration.format(type=enum_type))
    project.must("run", token_types=labels)
    warehouse.check()
    rows = warehouse.rows("select fine_tuning_tokens from token_tracking.tenant_token_usage")
    assert rows == [(0,)]
    checks = ("labels_agree", "tenants_equal_sum_of_months")
    project.must("test", "--select", *checks, token_types=labels)


def test_what_cannot_give_exact_totals_is_refused(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert(
        [Event("2", NOON, agent="bot")], voids=[("acme", "1")], owners=[("bot", NOON, "owner")]
    )
    before = warehouse.status()
    for zone in ("IST", "CET", "UTC+5:30", "+05:30", "Europe/Madird", "Etc/UTC+5:30", ""):
        refused = project.run("run", billing_timezone=zone)
        assert "a zone's full name" in refused.said, zone
    for partial in (["--empty"], ["--sample", "1 day"]):
        refused = project.run("run", *partial)
        assert "cannot be built with --empty or --sample" in refused.said, partial
    for rows in ("usage_events", "usage_voids", "agent_owners"):
        uncounted = "where idempotency_key = '2'" if rows == "usage_events" else ""
        update = f"update token_tracking_raw.{rows} set ingest_xid = %s {uncounted}"
        execute(warehouse, update % "10 ^ 12")
        refused = project.run("run", "--select", "int_usage__hourly")
        assert "token-tracking schema apply" in refused.said, rows
        execute(warehouse, update % "pg_current_xact_id()::text::bigint")
    assert warehouse.status() == before
    project.must("run")
    warehouse.check()


def test_no_setting_of_a_session_changes_a_total(project: DbtProject, warehouse: Warehouse) -> None:
    warehouse.insert([Event("1", NOON, agent="bot")])
    project.must("run")
    whole = "select basis from token_tracking.build_state order by model"
    before = warehouse.rows(whole)
    settings = [
        "bytea_output=escape",
        "search_path=token_tracking_raw,token_tracking",
        "quote_all_identifiers=on",
        "standard_conforming_strings=off",
        "escape_string_warning=off",
        "default_transaction_isolation=serializable",
        "datestyle=SQL,DMY",
    ]
    options = " ".join(f"-c {setting}" for setting in settings)
    hostile = DbtProject({**project.env, "PGOPTIONS": options}, project.scratch)
    for build in (hostile, project):
        warehouse.insert([Event("2" if build is hostile else "3", NOON)])
        build.must("run")
        assert warehouse.rows(whole) == before
        warehouse.check()


def test_a_change_of_a_view_gives_up_before_anybody_waits(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    select = "select * from token_tracking.usage_events"
    with closing(warehouse.connect(autocommit=False)) as reader:
        reader.execute(select)
        refused = project.run("run", billing_timezone="Asia/Kathmandu")
        assert "lock timeout" in refused.said
        assert warehouse.rows(select)
    project.must("run", billing_timezone="Asia/Kathmandu")


def test_row_policies_give_up_before_anybody_waits(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    execute(warehouse, "create role token_tracking_tenant_reader")
    try:
        with closing(warehouse.connect(autocommit=False)) as reader:
            reader.execute("select * from token_tracking.daily_token_usage")
            refused = project.run("run", "--select", "daily_token_usage")
            assert "lock timeout" in refused.said
        project.must("run", "--select", "daily_token_usage")
    finally:
        execute(
            warehouse,
            "drop owned by token_tracking_tenant_reader",
            "drop role token_tracking_tenant_reader",
        )


def test_a_deferred_build_works_and_a_clone_is_refused(
    project: DbtProject, warehouse: Warehouse
) -> None:
    state = str(project.scratch / "state")
    own_target = ["--target-path", str(project.scratch / "dev")]

    def dbt(*words: str, schema: str = "token_tracking", green: bool = True) -> str:
        # Not in a worker: dbt stores in the project what it deferred.
        environment = {**os.environ, **project.env, "DBT_SCHEMA": schema}
        folders = [f"--project-dir={ROOT}", f"--profiles-dir={ROOT}", f"--log-path={state}"]
        command = [*forked_command("dbt"), *words, *folders]
        done = subprocess.run(
            command,
            env=environment,
            cwd=project.scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is green, done.stdout
        return done.stdout

    project.must("seed")
    dbt("parse", "--target-path", state)
    # It once had a base of its own, whose runs have numbers like those of the one that is read.
    for day in (60, 90):
        warehouse.insert([Event(f"past-{day}", NOON - timedelta(days=day), agent="bot")])
        dbt("run", "--select", "+int_usage__hourly", *own_target, schema="dev")
    assert warehouse.rows("select distinct run_no from dev.rollup_changes") == [(2,)]
    marts = ["daily_token_usage", "monthly_token_usage", "daily_agent_token_usage"]
    views = ["agent_owner_periods", "tenant_agent_token_usage", "tenant_token_usage"]
    # The mart of the first one is deferred, too: it has the other schema's enum types.
    now = ["hourly_token_usage_now", "daily_token_usage_now", "monthly_token_usage_now"]
    # Once with the events' view of its own schema, once with the other one's.
    views_of_runs = [[*views, "usage_events"], views]
    deferred = ["--defer", "--favor-state", "--state", state, *own_target]
    for number in range(2):
        warehouse.insert([Event(str(number), NOON, agent="bot", operation="sumarize")])
        project.must("run")
        dbt(
            *("run", "--select", *marts, *now, *views_of_runs[number], *deferred),
            schema="dev",
        )
        warehouse.insert([Event(f"new-{number}", NOON, agent="bot", operation="sumarize")])
        for relation in (*marts, *now, "usage_events"):
            rows = [
                warehouse.rows(f"select found::text from {schema}.{relation} as found order by 1")
                for schema in ("token_tracking", "dev")
            ]
            assert rows[0] == rows[1] != []
        billed = "select count(*) from dev.billed_events('acme', null, null)"
        assert warehouse.rows(billed) == [(4 + 2 * number,)]
    # Its tests compare what that base's newest run changed.
    execute(
        warehouse,
        "update dev.monthly_token_usage set tokens = tokens + 1 where usage_month = '2026-03-01'",
    )
    said = dbt(
        *("build", "--select", *marts, "--exclude", "tag:full", *deferred),
        schema="dev",
        green=False,
    )
    failed = {"monthly_equals_sum_of_daily", "months_grow_by_new_events"}
    assert set(re.findall(r"FAIL \d+ (\w+)", said)) == failed
    said = dbt("clone", "--state", state, schema="copy", green=False)
    assert "`dbt clone` is not supported" in said


def test_analysts_views_and_grants_survive_every_build(
    project: DbtProject, warehouse: Warehouse
) -> None:
    project.must("run")
    execute(
        warehouse,
        "create view public.mine as select * from token_tracking.usage_events",
        "create view public.days as select * from token_tracking.daily_token_usage",
        "drop role if exists analyst",
        "create role analyst",
        "grant select on token_tracking.daily_token_usage, token_tracking.usage_events to analyst",
    )
    warehouse.insert([Event("1", NOON)])
    project.must("build", "--full-refresh", billing_timezone="Europe/Madrid")
    assert warehouse.rows("select tokens from public.mine") == [(100,)]
    assert warehouse.rows("select tokens from public.days") == [(100,)]
    for relation in ("daily_token_usage", "usage_events"):
        assert warehouse.rows(
            f"select has_table_privilege('analyst', 'token_tracking.{relation}', 'select')"
        ) == [(True,)]
    execute(warehouse, "drop owned by analyst", "drop role analyst")


def test_a_dump_under_another_name_keeps_others_views(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    execute(warehouse, "create view public.mine as select * from token_tracking.daily_token_usage")
    name = project.env["PGDATABASE"]
    copy = DbtProject({**project.env, "PGDATABASE": f"{name}_copy"}, project.scratch)
    with closing(
        psycopg.connect(warehouse.database.url, dbname="postgres", autocommit=True)
    ) as connection:
        copy_database(connection, f"{name}_copy", name)
        try:
            copy.must("run")
        finally:
            connection.execute(f"drop database {name}_copy with (force)")


def test_a_view_of_other_columns_spares_others_views(
    project: DbtProject, warehouse: Warehouse
) -> None:
    project.must("run")
    columns = "    build_state.snapshot,\n    build_state.as_of,\n"
    turned = "    build_state.as_of,\n    build_state.snapshot,\n"
    edit = Edit("models/marts/build_status.sql", columns, turned)
    other = DbtProject(project.env, project.scratch, (edit,))
    execute(warehouse, "create view public.mine as select * from token_tracking.build_status")
    refused = other.run("run", "--select", "build_status")
    assert not refused.green
    assert "view public.mine depends on view token_tracking.build_status" in refused.said
    execute(warehouse, "drop view public.mine")
    other.must("run", "--select", "build_status")
    project.must("run", "--select", "build_status")
    assert warehouse.status()


def test_a_rollup_of_other_columns_spares_others_views(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    execute(
        warehouse,
        "update token_tracking.build_state set shape = 'of an older version'"
        " where model = 'daily_token_usage'",
        "alter table token_tracking.daily_token_usage rename tokens to older",
        "create view public.mine as select * from token_tracking.daily_token_usage",
    )
    refused = project.run("run", "--select", "daily_token_usage")
    assert not refused.green
    assert "view public.mine depends on table token_tracking.daily_token_usage" in refused.said
    execute(warehouse, "drop view public.mine")
    project.must("run")
    assert warehouse.check()["tenant_token_usage"]


def test_two_builds_at_once_on_an_empty_database(project: DbtProject, warehouse: Warehouse) -> None:
    warehouse.insert([Event("1", NOON, operation="sumarize")])
    builds = [project.start("build") for _ in range(3)]
    for result in [build.wait() for build in builds]:
        assert result.green, result.said
    warehouse.check()


def test_a_build_reads_no_table_from_end_to_end(project: DbtProject, warehouse: Warehouse) -> None:
    execute(
        warehouse,
        "insert into token_tracking_raw.usage_events"
        " (tenant_id, idempotency_key, tokens, token_type, operation, agent_id, occurred_at)"
        " select 'tenant-' || number % 300, number, 1, 'llm', 'query', 'bot' || number % 50,"
        " timestamptz '2026-03-10' - number * interval '1 minute'"
        " from generate_series(1, 100000) as number",
        "insert into token_tracking_raw.usage_voids"
        " select 'tenant-' || number % 300, number, 'test', 'test'"
        " from generate_series(1, 100000, 10) as number",
        "insert into token_tracking_raw.agent_owners"
        " select 'bot' || number, '2026-01-01', 1, 'owner', 'test'"
        " from generate_series(1, 20000) as number",
        # Summarizing a BRIN index, whenever autovacuum does it, counts as scans.
        *(
            f"alter table token_tracking_raw.{table} set (autovacuum_enabled = off);"
            f" select brin_summarize_new_values('token_tracking_raw.{table}_ingest_xid')"
            for table in ("usage_events", "usage_voids", "agent_owners")
        ),
        # The freshness check treats the newest 1,000 transactions as new.
        *["select pg_current_xact_id()"] * 1000,
    )
    project.must("build")

    def sequential_scans(schemas: str) -> list[tuple[str, int]]:
        execute(warehouse, "select pg_stat_force_next_flush()")
        return warehouse.rows(
            "select relname, seq_scan from pg_stat_user_tables"
            f" where schemaname ~ '{schemas}' and relname in ('usage_events', 'usage_voids',"
            " 'agent_owners', 'int_usage__hourly', 'hourly_token_usage', 'daily_token_usage')"
            " order by 1"
        )

    def insert(day: int) -> None:
        warehouse.insert(
            [Event(f"new-{day}-{number}", NOON, agent="bot1") for number in range(100)],
            voids=[("tenant-5", str(5 + 300 * day))],
            owners=[("bot1", datetime(2026, 3, day, tzinfo=UTC), "buyer")],
        )

    # Never analyzed; a planner that knows the tables.
    for day, known in enumerate(("", "vacuum analyze"), start=1):
        execute(warehouse, known or "select")
        before = sequential_scans("^token_tracking")
        assert len(before) == 6
        insert(day)
        project.must("run")
        assert sequential_scans("^token_tracking") == before

    # Some tests compare a whole month, or ask whether there is a row at all.
    before = sequential_scans("raw$")
    assert len(before) == 3
    insert(3)
    project.must("build", "--exclude", "label_aliases", "tag:full")
    project.must("source", "freshness")
    assert sequential_scans("raw$") == before
    warehouse.check()

    # A price that covers no usage reads none; one of a day reads that.
    def read_of_base() -> int:
        execute(warehouse, "select pg_stat_force_next_flush()")
        [(read,)] = warehouse.rows(
            "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables"
            " where schemaname = 'token_tracking' and relname = 'int_usage__hourly'"
        )
        return read

    of_day = {"provider": "unknown", "model": "unknown", "token_kind": "unsplit", "amount": 1}
    for valid_from, at_most in (("2030-01-01T00:00Z", 0), ("2026-03-09T20:00Z", 10_000)):
        before = read_of_base()
        warehouse.record("record_model_prices", {**of_day, "valid_from": valid_from})
        project.must("run")
        assert read_of_base() - before <= at_most
    warehouse.check()


def test_many_owners_of_one_agent_cost_a_build_little(
    database: Database, warehouse: Warehouse, tmp_path: Path
) -> None:
    project = DbtProject({**database.env, "PGOPTIONS": "-c statement_timeout=20s"}, tmp_path)
    project.must("seed")
    warehouse.insert(
        Event(str(number), NOON + timedelta(seconds=number), agent="bot") for number in range(2000)
    )
    project.must("run")
    execute(
        warehouse,
        "insert into token_tracking_raw.agent_owners"
        " (agent_id, valid_from, revision, owner_tenant_id, recorded_by)"
        " select 'bot', '2026-01-01', number, 'often-' || number % 2, 'test'"
        " from generate_series(1, 50000) as number"
        " union all select 'bot', '2026-02-01'::timestamptz + number * interval '1 second', 1,"
        " 'late-' || number % 2, 'test' from generate_series(1, 50000) as number",
    )
    project.must("run")
    paid = warehouse.rows("select tenant_id, event_count from token_tracking.tenant_token_usage")
    assert paid == [("late-0", 2000)]


def test_a_sum_beyond_bigint_names_payer_and_hour(
    project: DbtProject, warehouse: Warehouse
) -> None:
    half = 2**62
    project.must("seed")
    project.must("run")
    # The sum of millions of events of the largest allowed size, in two rows.
    execute(
        warehouse, "alter table token_tracking_raw.usage_events drop constraint tokens_in_range"
    )
    warehouse.insert([Event("1", NOON, "greedy", half), Event("2", NOON, "greedy", half)])
    warehouse.insert([Event("3", NOON, "modest", 5)])
    before = warehouse.marts()
    stopped = project.run("run")
    assert re.search(
        r"more tokens than a bigint holds, of payer \"greedy\" in 2026-03-10 17:30:00[+]05:30: "
        r"void .* with void_token_usage",
        stopped.said,
    )
    assert warehouse.marts() == before
    warehouse.insert(voids=[("greedy", "2")])
    project.must("run")
    totals = {row[2]: row[6] for row in warehouse.check()["hourly_token_usage"]}
    assert totals == {"greedy": half, "modest": 5}

    # An hour that holds them, in a day that does not.
    warehouse.insert([Event("4", NOON + timedelta(hours=1), "greedy", half)])
    stopped = project.run("run")
    assert 'of payer "greedy" in 2026-03-10: void' in stopped.said
    warehouse.insert(voids=[("greedy", "4")])
    project.must("run")
    warehouse.check()
