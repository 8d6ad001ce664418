"""Directed histories of costs: right for the project, wrong for the mistakes that name them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from tests.support.directed import agree, until_waiting_for
from tests.support.price_rows import HOUR, START, alias, assignment, of_input, price, rule
from tests.support.warehouse import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.project import DbtProject
    from tests.support.warehouse import Warehouse

COSTS = ("--select", "daily_token_cost", "monthly_token_cost")


def asked(key: str, hours: int = 0, tenant: str = "acme", **more: object) -> Event:
    """Return an event of that hour."""
    return Event(key, START + hours * HOUR, tenant, **more)  # type: ignore[arg-type]


def long_requests(project: DbtProject, warehouse: Warehouse) -> None:
    """Requests at a bound and above it; then the price of the longer ones ends."""
    warehouse.record("record_model_prices", *of_input(2), *of_input(20, context_over=272_000))
    for size in (272_000, 272_001):
        warehouse.insert([asked(str(size), tokens=size, input_tokens=size, output_tokens=None)])
    project.must("run")
    warehouse.check()
    warehouse.record("record_model_prices", *of_input(None, context_over=272_000))
    project.must("run", *COSTS)
    warehouse.check()


def list_of_lists(project: DbtProject, warehouse: Warehouse) -> None:
    """A list that two others follow, in one and in two steps, gets a price, and one a factor."""
    warehouse.record("record_model_prices", *of_input(2, price_list="own"))
    warehouse.record("record_price_list_rules", rule("c", "own", 1.5), rule("d", "c", 2))
    payers = {"acme": "own", "other": "c", "third": "d"}
    warehouse.record("record_tenant_price_lists", *(assignment(*each) for each in payers.items()))
    warehouse.insert([asked(payer, tenant=payer) for payer in payers])
    project.must("run")
    warehouse.record("record_model_prices", *of_input(3, price_list="own"))
    project.must("run", *COSTS)
    warehouse.check()
    warehouse.record("record_price_list_rules", rule("c", "own", 1.25))
    project.must("run", *COSTS)
    warehouse.check()


def names_of_models(project: DbtProject, warehouse: Warehouse) -> None:
    """A model that goes by another name gets a price; then the name is another model's."""
    warehouse.record("record_model_prices", *of_input(2), *of_input(9, "x"))
    warehouse.record("record_model_aliases", alias("deployment", ("openai", "gpt-4o")))
    warehouse.insert([asked("1", model="deployment")])
    project.must("run")
    warehouse.record("record_model_prices", *of_input(3))
    project.must("run", *COSTS)
    warehouse.check()
    warehouse.record("record_model_aliases", alias("deployment", ("openai", "x")))
    project.must("run", *COSTS)
    warehouse.check()


def corrected_price(project: DbtProject, warehouse: Warehouse) -> None:
    """A higher revision of the same hour counts, up to the next price of that kind."""
    output = price(8, "output", hours=30)
    warehouse.record("record_model_prices", *of_input(2), *of_input(4, hours=80), output)
    warehouse.insert([asked("1"), asked("2", 50), asked("3", 80)])
    project.must("run")
    warehouse.check()
    warehouse.record("record_model_prices", *of_input(3))
    project.must("run", *COSTS)
    warehouse.check()


def assigned_list(project: DbtProject, warehouse: Warehouse) -> None:
    """A payer pays by another list from an hour on, and later on by the public one again."""
    warehouse.record("record_model_prices", *of_input(2), *of_input(5, price_list="c"))
    lists = assignment("acme", "c", 24), assignment("other", "list")
    warehouse.record("record_tenant_price_lists", *lists)
    warehouse.insert([asked("1"), asked("2", 24), asked("3", 72), asked("4", 24, "other")])
    project.must("run")
    warehouse.check()
    warehouse.record("record_tenant_price_lists", assignment("acme", None, 72))
    project.must("run", *COSTS)
    warehouse.check()


def long_amount(project: DbtProject, warehouse: Warehouse) -> None:
    """A cost has more digits than a quotient."""
    warehouse.record("record_model_prices", *of_input(0.08333333333333334))
    warehouse.insert([asked("1", tokens=10**9 + 7, input_tokens=10**9 + 7, output_tokens=None)])
    project.must("run")
    warehouse.check()


def late_price(project: DbtProject, warehouse: Warehouse) -> None:
    """A price is recorded before a build, and committed after it."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    with closing(warehouse.connect(autocommit=False)) as late:
        warehouse.record("record_model_prices", *of_input(3), connection=late)
        warehouse.insert([asked("2", 24)])
        warehouse.record("record_model_prices", *of_input(9, "x"))
        project.must("run")
        warehouse.check()
        late.commit()
    project.must("run", *COSTS)
    warehouse.check()


def price_during_build(project: DbtProject, warehouse: Warehouse) -> None:
    """A price commits after the build looked prices up, and before it saves what it saw."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1"), asked("2", 24)])
    project.must("run")
    warehouse.record("record_model_prices", *of_input(3, hours=24))
    with closing(warehouse.connect(autocommit=False)) as gate:
        gate.execute("lock table token_tracking.daily_token_cost in share mode")
        build = project.start("run", *COSTS)
        until_waiting_for(warehouse, "token_tracking.daily_token_cost")
        warehouse.record("record_model_prices", *of_input(4))
        gate.rollback()
    result = build.wait()
    assert result.green, result.said
    warehouse.check()
    project.must("run", *COSTS)
    warehouse.check()


def partial_selections(project: DbtProject, warehouse: Warehouse) -> None:
    """Prices come between the builds of the base, of the days and of the months."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    warehouse.insert([asked("2", 24)])
    warehouse.record("record_model_prices", *of_input(3, hours=24))
    project.must("run", "--exclude", "daily_token_cost", "monthly_token_cost")
    warehouse.record("record_model_prices", *of_input(4))
    project.must("run", "--select", "daily_token_cost")
    project.must("run", "--select", "monthly_token_cost")
    warehouse.check()
    warehouse.record("record_model_prices", *of_input(5))
    project.must("run", "--select", "daily_token_cost")
    warehouse.record("record_model_prices", *of_input(6, hours=24))
    project.must("run", *COSTS)
    warehouse.insert([asked("3", 24)])
    project.must("run")
    warehouse.check()


def emptied_prices(project: DbtProject, warehouse: Warehouse) -> None:
    """All prices are taken away at once; then the view of them leaves some out."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute("truncate token_tracking_raw.model_prices")
    project.must("run", *COSTS)
    warehouse.check()
    warehouse.record("record_model_prices", *of_input(3))
    project.must("run", *COSTS)
    warehouse.check()
    with closing(warehouse.connect()) as connection:
        [(query,)] = connection.execute(
            "select pg_get_viewdef('token_tracking.stg_usage__model_prices'::regclass)"
        ).fetchall()
        connection.execute(
            "create or replace view token_tracking.stg_usage__model_prices as select * from"
            f" ({query.rstrip(';')}) as own where false"  # type: ignore[arg-type]
        )
    project.must("run", *COSTS)
    agree(warehouse.rows("select sum(cost) from token_tracking.monthly_token_cost"), [(0,)])
    project.must("run")
    warehouse.check()


def old_numbers(project: DbtProject, warehouse: Warehouse) -> None:
    """A price comes under the number of a transaction that was seen, or of another cluster."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    warehouse.record("record_model_prices", *of_input(3))
    number = "update token_tracking_raw.model_prices set ingest_xid = {} where revision = {}"
    with closing(warehouse.connect()) as connection:
        connection.execute(number.format(3, 2))
        project.must("run", *COSTS)
        warehouse.check()
        connection.execute(number.format(10**12, 1))
    refused = project.run("run", *COSTS).said
    assert "come from a dump of another one" in refused, f"a foreign row was read: {refused}"


def future_snapshot(project: DbtProject, warehouse: Warehouse) -> None:
    """The transaction counter was set back since the build that saw the prices."""
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking.build_state set price_snapshot = '1000000000:1000000000:'"
            " where price_snapshot is not null"
        )
    warehouse.record("record_model_prices", *of_input(3))
    project.must("run", *COSTS)
    warehouse.check()


HISTORIES: list[Callable[[DbtProject, Warehouse], None]] = [
    long_requests,
    list_of_lists,
    names_of_models,
    corrected_price,
    assigned_list,
    long_amount,
    late_price,
    price_during_build,
    partial_selections,
    emptied_prices,
    old_numbers,
    future_snapshot,
]
