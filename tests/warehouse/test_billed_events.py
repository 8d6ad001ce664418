"""The function that returns a payer's events: the view's rows, without reading everybody's."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.project import DbtProject, Edit
from tests.support.warehouse import Event, Warehouse, WrongTotalsError

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MACRO = "macros/billed_events.sql"


def fill(warehouse: Warehouse) -> None:
    """Record an agent that changes hands, is given back and taken over by revision, and a void."""
    warehouse.insert(
        [
            Event(f"{tenant}-{agent}-{hour}", NOON + hour * HOUR, tenant, agent=agent)
            for tenant in ("acme", "blue", "coal")
            for agent in (None, "bot", "stray")
            for hour in range(6)
        ],
        voids=[("blue", "blue-bot-1"), ("acme", "acme-None-2")],
        owners=[
            ("bot", NOON - HOUR, "coal"),
            ("bot", NOON + HOUR, "blue"),
            ("bot", NOON + 2 * HOUR, "acme"),
            ("bot", NOON + 2 * HOUR, "blue"),
            ("bot", NOON + 3 * HOUR, None),
            ("bot", NOON + 4 * HOUR, "acme"),
        ],
    )


@pytest.mark.parametrize(
    "edit",
    [
        Edit(MACRO, "and of_agent.requester_tenant_id <> p_tenant_id", ""),
        Edit(MACRO, "        and events.tenant_id = p_tenant_id\n", ""),
        Edit(MACRO, "events.occurred_at < coalesce", "events.occurred_at <= coalesce"),
        Edit(MACRO, "< least(periods.valid_to, coalesce", "<= least(periods.valid_to, coalesce"),
        Edit(MACRO, "greatest(periods.valid_from, p_from)", "p_from"),
        Edit("macros/ownership_end.sql", "> {{ period }}.valid_from", "> '2026-03-10 13:00Z'"),
    ],
    ids=lambda edit: edit.old.strip(),
)
def test_a_mistake_is_caught(project: DbtProject, warehouse: Warehouse, edit: Edit) -> None:
    fill(warehouse)
    project.must("run", "--select", "+agent_owner_periods")
    warehouse.check_billed_events()
    DbtProject(project.env, project.scratch, (edit,)).must(
        "run", "--select", "+agent_owner_periods"
    )
    with pytest.raises(WrongTotalsError, match="billed_events"):
        warehouse.check_billed_events()


def test_it_reads_a_payers_events_alone(project: DbtProject, warehouse: Warehouse) -> None:
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "insert into token_tracking_raw.usage_events"
            " (tenant_id, idempotency_key, tokens, token_type, operation, agent_id, occurred_at)"
            " select 'tenant-' || number % 1000, number, 1, 'llm', 'query',"
            " case when number % 10 = 0 then 'bot-' || number % 500 end,"
            " timestamptz '2026-03-10 12:00Z' - number * interval '1 second'"
            " from generate_series(1, 50000) as number"
        )
        connection.execute(
            "insert into token_tracking_raw.agent_owners"
            " select 'bot-' || number, '2026-01-01', 1, 'tenant-' || number % 50, 'test'"
            " from generate_series(0, 20000) as number"
        )
        connection.execute("vacuum analyze token_tracking_raw.usage_events")
        connection.execute("analyze token_tracking_raw.agent_owners")
    project.must("run", "--select", "+agent_owner_periods")
    for span in ("null, null", "'2026-03-10 00:00Z', '2026-03-10 06:00Z'"):
        call = f"token_tracking.billed_events('tenant-7', {span})"
        plan = "\n".join(line for (line,) in warehouse.rows(f"explain select * from {call}"))
        assert "Seq Scan on usage_events" not in plan, plan
        assert "Seq Scan on agent_owners" not in plan, plan
        assert warehouse.rows(f"select count(*) > 0 from {call}") == [(True,)]


def test_it_shows_what_the_view_shows(project: DbtProject, warehouse: Warehouse) -> None:
    """With the caller's rights: who may not read the view reads nothing through the function."""
    fill(warehouse)
    project.must("run", "--select", "+agent_owner_periods")
    with closing(warehouse.connect()) as connection:
        connection.execute("drop role if exists curious")
        connection.execute("create role curious")
        connection.execute("grant usage on schema token_tracking to curious")
        try:
            connection.execute("set role curious")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="usage_events"):
                connection.execute("select from token_tracking.billed_events('acme', null, null)")
        finally:
            connection.execute("reset role")
            connection.execute("drop owned by curious")
            connection.execute("drop role curious")


def test_a_column_more_makes_it_anew(project: DbtProject, warehouse: Warehouse) -> None:
    """And nothing is written where nothing changed."""
    fill(warehouse)
    made = "select oid, xmin from pg_proc where proname = 'billed_events'"
    project.must("run", "--select", "+agent_owner_periods")
    [first] = warehouse.rows(made)
    project.must("run", "--select", "+agent_owner_periods")
    assert warehouse.rows(made) == [first]
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "comment on function token_tracking.billed_events is 'of another version'"
        )
    project.must("run", "--select", "+agent_owner_periods")
    [again] = warehouse.rows(made)
    assert again[0] != first[0]
    warehouse.check_billed_events()


def test_nobody_is_no_payer(project: DbtProject, warehouse: Warehouse) -> None:
    fill(warehouse)
    project.must("run", "--select", "+agent_owner_periods")
    count = "select count(*) from token_tracking.billed_events({}, '{}', '{}')"
    later = NOON + 9 * HOUR
    assert warehouse.rows(count.format("null", NOON, later)) == [(0,)]
    assert warehouse.rows(count.format("'nobody'", NOON, later)) == [(0,)]
    assert warehouse.rows(count.format("'acme'", later, NOON)) == [(0,)]
