"""The dbt project's totals against an independent count."""

from __future__ import annotations

import random
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support import ROOT
from tests.support.oracle import Settings
from tests.support.project import DbtProject
from tests.support.usage import believable_usage
from tests.support.warehouse import ROLLUPS, Event, Warehouse
from token_tracking.event.labels import Operation, TokenType
from token_tracking.validation.suites import ROLLUPS as VALIDATED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
ZONES = ["UTC", "Europe/Madrid", "Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns"]


@pytest.mark.parametrize("zone", ZONES)
def test_every_mart_equals_an_independent_count(
    project: DbtProject, database: Database, zone: str
) -> None:
    warehouse = Warehouse(database, Settings(billing_timezone=zone))
    warehouse.insert(**believable_usage(seed=ZONES.index(zone), size=3000))
    project.must("build", billing_timezone=zone)
    marts = warehouse.check()
    assert all(marts.values()), "a mart is empty, so nothing was compared"
    for mart in ("hourly_token_usage", "daily_token_usage", "monthly_token_usage"):
        assert any(0 < row[-2] < row[-3] for row in marts[mart]), "no output below the input"
    rules = {row[4] for row in marts["daily_agent_token_usage"]}
    assert rules == {"agent_owner", "unknown_agent"}


def test_usage_events_has_one_row_a_counted_event(
    project: DbtProject, warehouse: Warehouse
) -> None:
    warehouse.insert(
        [
            Event("1", NOON, "acme", 10, agent="bot", model=None, operation="sumarize"),
            Event("2", NOON + timedelta(hours=1), "acme", 20, agent="bot", token_type="video"),
            Event("3", NOON, "acme", 40),
            Event("4", NOON, "acme", 80),
        ],
        voids=[("acme", "4")],
        owners=[("bot", NOON, "seller"), ("bot", NOON + timedelta(hours=1), "buyer")],
    )
    project.must("build")
    assert warehouse.rows(
        "select idempotency_key, tenant_id, requester_tenant_id, token_type::text, operation::text,"
        " model, attribution_rule::text, tokens from token_tracking.usage_events order by 1"
    ) == [
        ("1", "seller", "acme", "llm", "summarize", "unknown", "agent_owner", 10),
        ("2", "buyer", "acme", "unknown", "query", "gpt-4o", "agent_owner", 20),
        ("3", "acme", "acme", "llm", "query", "gpt-4o", "requester", 40),
    ]


def test_labels_agree_in_python_dbt_and_the_database(
    project: DbtProject, warehouse: Warehouse
) -> None:
    project.must("run")

    def labels(enum_type: str) -> list[str]:
        rows = warehouse.rows(
            "select enumlabel from pg_enum"
            f" where enumtypid = 'token_tracking.{enum_type}'::regtype order by enumsortorder"
        )
        return [label for (label,) in rows]

    assert labels("token_type") == [*TokenType, "unknown"]
    assert labels("operation_type") == [*Operation, "unknown"]
    assert labels("attribution_rule") == ["requester", "agent_owner", "unknown_agent"]


def test_ids_of_the_longest_text_break_no_index(project: DbtProject, warehouse: Warehouse) -> None:
    dice = random.Random(7)

    def name() -> str:
        # Incompressible, four bytes a character.
        return "".join(chr(dice.randint(0x20000, 0x2FFFF)) for _ in range(255))

    owner, requester, agent, model, label = name(), name(), name(), name(), name()
    for moment in (NOON, NOON + timedelta(hours=1)):
        warehouse.insert(
            [
                Event(name(), moment, requester, 5, agent=agent, model=model, operation=label),
                Event(name(), moment, requester, 7, agent=agent, model=model, token_type=label),
                Event(name(), moment, requester, 9, agent="a\\b\\\\c\\x00", model=model),
            ],
            owners=[(agent, NOON, owner)],
        )
        project.must("build")
        warehouse.check()


def test_totals_beyond_32_bits(project: DbtProject, warehouse: Warehouse) -> None:
    warehouse.insert([Event(str(number), NOON, tokens=2**40) for number in range(100)])
    project.must("run")
    assert warehouse.rows("select tokens from token_tracking.monthly_token_usage") == [
        (100 * 2**40,)
    ]


def test_grains_and_descriptions_reach_the_database(
    project: DbtProject, warehouse: Warehouse
) -> None:
    project.must("run")
    keys = dict(
        warehouse.rows(
            "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint"
            " where contype = 'p' and connamespace = 'token_tracking'::regnamespace"
        )
    )
    labels = "tenant_id, token_type, operation, model"
    assert keys["token_tracking.daily_token_usage"] == f"PRIMARY KEY (usage_date, {labels})"
    assert keys["token_tracking.monthly_token_usage"] == f"PRIMARY KEY (usage_month, {labels})"
    assert keys["token_tracking.hourly_token_usage"] == (
        f"PRIMARY KEY (usage_hour, usage_date, {labels})"
    )
    undescribed = warehouse.rows(
        "select relname from pg_class where relnamespace = 'token_tracking'::regnamespace"
        " and relkind in ('r', 'v') and obj_description(oid) not like 'One row per %'"
    )
    assert undescribed == []


def test_every_list_of_rollups_is_complete(project: DbtProject, warehouse: Warehouse) -> None:
    project.must("run")
    built = {model for (model,) in warehouse.rows("select model from token_tracking.build_status")}
    checked = (ROOT / "tests" / "data" / "nothing_to_check.sql").read_text("utf-8")
    [listed] = re.findall(r"set rollups = \[(.*?)\]", checked, re.DOTALL)
    assert {"int_usage__hourly", *re.findall(r"'(.*?)'", listed)} == built
    assert set(VALIDATED) == built
    assert {"int_usage__hourly", *ROLLUPS} == built


def test_a_wrong_total_is_refused_by_the_table(project: DbtProject, warehouse: Warehouse) -> None:
    warehouse.insert([Event("1", NOON, agent="bot")])
    project.must("run")
    for mart in ("int_usage__hourly", *ROLLUPS):
        wrong = "unpriced_tokens = tokens + 1" if mart.endswith("_cost") else "event_count = 0"
        update = f"update token_tracking.{mart} set {wrong}"
        with (
            closing(warehouse.connect()) as connection,
            pytest.raises(psycopg.errors.CheckViolation),
        ):
            connection.execute(update)


def test_both_ends_of_the_supported_versions(each_database: Database, tmp_path: Path) -> None:
    project = DbtProject({**each_database.env, "PGTZ": "Asia/Kolkata"}, tmp_path)
    warehouse = Warehouse(each_database)
    usage = believable_usage(seed=15, size=600)
    for part in (slice(0, 300), slice(300, 600)):
        warehouse.insert(usage["events"][part], usage["voids"][part], usage["owners"][part])
        project.must("build")
        warehouse.check()
    warehouse.insert(owners=usage["owners"], voids=usage["voids"])
    project.must("build")
    warehouse.check()
    project.must("test", "--select", "test_type:unit")
