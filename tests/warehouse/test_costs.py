"""Costs: each token at the price in force at its time, whatever is recorded in whatever order."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.support.price_rows import (
    HOUR,
    KINDS,
    START,
    alias,
    assignment,
    at,
    of_input,
    price,
    rule,
    some_rows,
)
from tests.support.validating import rows_found
from tests.support.warehouse import Event, Warehouse

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.project import DbtProject

# The validation's.
RECOUNTS = (
    "daily_token_cost_equals_raw_events",
    "monthly_cost_equals_sum_of_daily",
    "billed_tokens_are_those_of_daily",
)
# Single events and their sums, both as of now.
OF_EVENTS = """
    with
    summed as (
        select
            usage_date, tenant_id, token_type, operation, provider, model, token_kind,
            service_tier, price_list, is_billed, currency, sum(tokens)::bigint as tokens,
            sum(cost) as cost, sum(unpriced_tokens)::bigint as unpriced_tokens
        from token_tracking.usage_event_costs
        group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
    )
    (select * from summed except all select * from token_tracking.daily_token_cost_now)
    union all
    (select * from token_tracking.daily_token_cost_now except all select * from summed)
"""


@pytest.fixture
def warehouse(prebuilt: Database) -> Warehouse:
    return Warehouse(prebuilt)


@pytest.fixture
def database(prebuilt: Database) -> Database:
    return prebuilt


def check(warehouse: Warehouse) -> None:
    """Compare the costs, those as of now and of events, with the oracle and with the validation."""
    warehouse.check()
    warehouse.check_now()
    assert warehouse.rows(OF_EVENTS) == []
    with closing(warehouse.connect()) as connection:
        for name in RECOUNTS:
            assert rows_found(connection, name) == [], name


def cost(warehouse: Warehouse, condition: str = "true") -> tuple[Decimal, int]:
    """Return the cost and the tokens without a price of what is billed."""
    [(total, unpriced)] = warehouse.rows(
        "select coalesce(sum(cost), 0), coalesce(sum(unpriced_tokens), 0)::bigint"
        f" from token_tracking.daily_token_cost where is_billed and {condition}"
    )
    return total, unpriced


def asked(key: str, hours: int = 0, tokens: int = 1_000_000, **more: object) -> Event:
    """Return an event whose tokens are all input, cached or not."""
    return Event(
        key, START + hours * HOUR, tokens=tokens, input_tokens=tokens, output_tokens=None, **more
    )  # type: ignore[arg-type]


def some_event(rng: random.Random, number: int) -> Event:
    whole_input = rng.choice([9, 1000, 33_000, 272_000, 272_001])
    output = rng.choice([None, 7, 4000])
    return Event(
        f"k{number}",
        START + timedelta(minutes=rng.randrange(72 * 60)),
        tenant=rng.choice("ab"),
        tokens=whole_input + (output or 0) + rng.choice([0, 0, 5]),
        input_tokens=whole_input,
        output_tokens=output,
        model=rng.choice(["gpt-4o", "gpt-4o", "alias", "x", None]),
        provider=rng.choice(["openai", "openai", None]),
        service_tier=rng.choice([None, None, "batch"]),
        agent=rng.choice([None, None, "bot"]),
    )


def record_something(warehouse: Warehouse, rng: random.Random) -> None:
    """Record prices, aliases, rules or assignments, of the past or the future."""
    procedure, rows = some_rows(rng, [-5, 0, 0, 9, 30, 50], "aabbo")
    warehouse.record(procedure, *rows)


@pytest.mark.parametrize("seed", range(int(os.environ.get("COST_HISTORIES", "3"))))
def test_every_history_costs_what_each_event_costs(
    warehouse: Warehouse, project: DbtProject, seed: int
):
    rng = random.Random(seed)
    warehouse.record(
        "record_model_prices",
        *(price(place + 2.5, kind, hours=-5) for place, kind in enumerate(KINDS)),
        *(price(place + 20, kind, "x", hours=-5) for place, kind in enumerate(KINDS[:3])),
        *(price(place + 50, kind, context_over=272_000) for place, kind in enumerate(KINDS[:4])),
        *(
            price(place + 100, kind, price_list="c", hours=9)
            for place, kind in enumerate(KINDS[2:])
        ),
    )
    warehouse.record("record_model_aliases", alias("alias", ("openai", "gpt-4o")))
    warehouse.record("record_price_list_rules", rule("c", "list", 0.7), rule("d", "c", 3))
    warehouse.record(
        "record_tenant_price_lists",
        assignment("a", "d", 30),
        assignment("o", "c", -5),
    )
    number = 0
    for _ in range(6):
        for _ in range(rng.randrange(1, 5)):
            action = rng.randrange(6)
            if action == 0:
                voided = (rng.choice("ab"), f"k{rng.randrange(number + 5)}")
                warehouse.insert(voids=[voided])
            elif action == 1:
                owner = rng.choice(["a", "o", None])
                warehouse.insert(owners=[("bot", START + rng.randrange(72) * HOUR, owner)])
            elif action < 4:
                events = [some_event(rng, number + place) for place in range(rng.randrange(1, 12))]
                number += len(events)
                warehouse.insert(events)
            else:
                for _ in range(3):
                    record_something(warehouse, rng)
        if rng.random() < 0.2:
            project.must("run", "--select", "int_usage__hourly")
        project.must("run")
        check(warehouse)
    found = warehouse.marts()
    project.must("build", "--exclude", "resource_type:unit_test")
    project.must("run", "--full-refresh")
    assert warehouse.marts() == found
    project.must("test", "--select", "tag:full")


def test_a_backdated_price_changes_just_its_hours(warehouse: Warehouse, project: DbtProject):
    """And rewrites no row of another day, model or payer."""
    warehouse.record(
        "record_model_prices", *of_input(2), *of_input(4, hours=72), *of_input(9, model="x")
    )
    warehouse.insert(
        asked(f"{model}-{hours}", hours, model=model)
        for model in ("gpt-4o", "x")
        for hours in range(0, 120, 6)
    )
    project.must("run")
    assert cost(warehouse, "model = 'gpt-4o'") == (12 * 2 + 8 * 4, 0)
    places = "select ctid, xmin, usage_date, model, cost from token_tracking.daily_token_cost"
    before = set(warehouse.rows(places))
    warehouse.record("record_model_prices", *of_input(3, hours=30))  # from 06:00 of the second day
    project.must("run")
    check(warehouse)
    changed: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for _, _, day, model, total in set(warehouse.rows(places)) - before:
        changed[str(day), model] += total
    assert changed == {
        ("2026-03-02", "gpt-4o"): 2 + 3 * 3,
        ("2026-03-03", "gpt-4o"): 4 * 3,
    }


def test_only_what_a_row_covers_is_counted_again(warehouse: Warehouse, project: DbtProject):
    """Each row is about one payer's first day: costs that are wrong elsewhere stay wrong."""
    list_c = [*of_input(2, price_list="c"), *of_input(4, hours=24, price_list="c")]
    warehouse.record("record_model_prices", *of_input(1), *list_c)
    warehouse.record("record_model_aliases", alias("name", ("openai", "x"), 24))
    warehouse.record("record_price_list_rules", rule("c", "list", 2, 24))
    warehouse.record(
        "record_tenant_price_lists", *(assignment("acme", "c", hours) for hours in (-24, 24))
    )
    warehouse.insert(
        asked(f"{model}-{hours}", hours, tenant=tenant, model=model)
        for tenant, model in (("acme", "gpt-4o"), ("acme", "name"), ("blue", "gpt-4o"))
        for hours in (0, 23, 24, 48)
    )
    project.must("run")
    check(warehouse)
    for procedure, rows in [
        ("record_model_prices", of_input(3, price_list="c")),
        ("record_model_aliases", [alias("name", ("openai", "gpt-4o"))]),
        ("record_price_list_rules", [rule("c", "list", 3)]),
        ("record_tenant_price_lists", [assignment("acme", None)]),
    ]:
        with closing(warehouse.connect()) as connection:
            connection.execute(
                "update token_tracking.daily_token_cost set cost = cost + 1000"
                " where currency is not null and cost < 1000"
            )
        warehouse.record(procedure, *rows)
        project.must("run", "--select", "daily_token_cost")
        assert warehouse.rows(
            "select distinct tenant_id, usage_date::text from token_tracking.daily_token_cost"
            " where cost > 1000 order by 1, 2"
        ) == [
            ("acme", "2026-03-02"),
            ("acme", "2026-03-03"),
            *(("blue", f"2026-03-0{day}") for day in (1, 2, 3)),
        ], procedure
    project.must("run", "--full-refresh")
    check(warehouse)


def test_a_price_of_the_future_changes_nothing_before_it(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1"), asked("2", 1)])
    project.must("run")
    run = warehouse.status()["daily_token_cost"]
    state = "select run_no from token_tracking.build_state where model = 'daily_token_cost'"
    before = warehouse.rows(state)
    warehouse.record("record_model_prices", *of_input(100, hours=2), *of_input(None, hours=3))
    project.must("run")
    assert warehouse.rows(state) == before
    assert warehouse.status()["daily_token_cost"][0] == run[0]
    warehouse.insert([asked("3", 2), asked("4", 3)])
    project.must("run")
    assert cost(warehouse) == (2 + 2 + 100, 1_000_000)
    check(warehouse)


def test_what_was_never_priced_costs_nothing_and_is_counted(
    warehouse: Warehouse, project: DbtProject
):
    """And a price that is added later rates the past."""
    warehouse.insert([asked("1"), asked("2", 1, model="y"), Event("3", START, tokens=7)])
    project.must("run")
    assert cost(warehouse) == (0, 2_000_007)
    [(unpriced,)] = warehouse.rows(
        "select sum(unpriced_tokens)::bigint from token_tracking.unpriced_usage"
    )
    assert unpriced == 2_000_007
    warehouse.record("record_model_prices", *of_input(2))
    project.must("run")
    assert cost(warehouse, "model = 'y'") == (0, 1_000_000)
    assert cost(warehouse, "token_kind = 'input' and model = 'gpt-4o'")[1] == 0
    check(warehouse)


def test_free_is_a_price(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(0))
    warehouse.insert([asked("1")])
    project.must("run")
    assert cost(warehouse) == (0, 0)


def test_what_the_cache_saved_is_of_the_prices_of_its_hour(
    warehouse: Warehouse, project: DbtProject
):
    """Where one of the two has no price, or another currency, it is not known, and not 0."""
    warehouse.record(
        "record_model_prices",
        price(2, "input"), price(0.5, "cache_read"),
        price(4, "input", hours=1),
        price(40, "input", hours=1, context_over=32_000),
        price(None, "input", hours=2), price(None, "input", hours=2, context_over=32_000),
        price(3, "input", hours=3, currency="EUR"),
    )  # fmt: skip
    warehouse.insert(
        asked(str(place), hours, tokens)
        for place, (hours, tokens) in enumerate(
            [(0, 20_000), (1, 32_000), (1, 32_002), (2, 600), (3, 800)]
        )
    )
    project.must("run")
    # Half of an event's input is cached.
    saved = (10_000 * Decimal("1.5") + 16_000 * Decimal("3.5") + 16_001 * Decimal("39.5")) / 10**6
    assert warehouse.rows(
        "select currency, tokens, saved from token_tracking.daily_cache_savings order by 1"
    ) == [("USD", 42_001, saved), (None, 700, 0)]
    check(warehouse)


def test_a_request_above_the_bound_pays_the_higher_price_for_all_kinds(
    warehouse: Warehouse, project: DbtProject
):
    """Cached input counts for the size; 272,000 tokens are not above 272,000."""
    for kind, short, long in [("input", 2, 20), ("cache_read", 1, 10), ("output", 3, 30)]:
        warehouse.record(
            "record_model_prices", price(short, kind), price(long, kind, context_over=272_000)
        )
    with closing(warehouse.connect()) as connection:
        for key, uncached in [("at", 264_064), ("above", 264_065)]:
            connection.execute(
                "select token_tracking_raw.track_token_usage_batch(json_build_array("
                "json_build_object('tenant_id', %s::text, 'provider', 'openai', 'model', 'gpt-4o',"
                " 'input_tokens', %s::int, 'cache_read_tokens', 7936, 'output_tokens', 100,"
                " 'occurred_at', '2026-03-01T00:00Z')))",
                (key, uncached + 7936),
            )
    project.must("run")
    million = Decimal(1_000_000)
    assert cost(warehouse, "tenant_id = 'at'")[0] == (264_064 * 2 + 7936 + 300) / million
    assert cost(warehouse, "tenant_id = 'above'")[0] == (264_065 * 20 + 79_360 + 3000) / million


def test_short_requests_pay_the_base_price_whatever_their_sum(
    warehouse: Warehouse, project: DbtProject
):
    warehouse.record("record_model_prices", *of_input(2), *of_input(20, context_over=200_000))
    warehouse.insert(asked(str(number), tokens=1000) for number in range(1000))
    project.must("run")
    assert cost(warehouse) == (2, 0)


def test_the_instant_of_a_price_is_its_first(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(5, hours=-24), *of_input(4))
    last = START - timedelta(microseconds=1)
    warehouse.insert(
        [asked("1"), Event("2", last, tokens=10**6, input_tokens=10**6, output_tokens=None)]
    )
    project.must("run")
    assert warehouse.rows(
        "select usage_date::text, sum(cost) from token_tracking.daily_token_cost"
        " group by 1 order by 1"
    ) == [("2026-02-28", 5), ("2026-03-01", 4)]


def test_twelve_digits_are_kept(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(0.08333333333333334))
    warehouse.insert([asked("1", tokens=7)])
    project.must("run")
    assert cost(warehouse) == (Decimal("0.00000058333333333333338"), 0)
    warehouse.insert([asked("2", tokens=2**40)])
    project.must("run")
    assert cost(warehouse)[0] == (2**40 + 7) * Decimal("0.00000008333333333333334")


def test_two_lists_at_once_and_a_backdated_factor(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.record(
        "record_price_list_rules",
        {"price_list": "customer", "base_list": "list", "factor": 1.5, "valid_from": at(0)},
    )
    warehouse.record(
        "record_tenant_price_lists",
        {"tenant_id": "acme", "price_list": "customer", "valid_from": at(2)},
    )
    warehouse.insert([asked("1"), asked("2", 2), asked("3", 2, tenant="blue")])
    project.must("run")
    query = (
        "select tenant_id, price_list, is_billed, sum(cost) from token_tracking.daily_token_cost"
        " group by 1, 2, 3 order by 1, 2, 3"
    )
    expected = [
        ("acme", "customer", True, 3),
        ("acme", "list", False, 2),
        ("acme", "list", True, 2),
        ("blue", "list", True, 2),
    ]
    assert warehouse.rows(query) == expected
    warehouse.record(
        "record_price_list_rules",
        {"price_list": "customer", "base_list": "list", "factor": 2, "valid_from": at(1)},
    )
    project.must("run")
    assert warehouse.rows(query) == [("acme", "customer", True, 4), *expected[1:]]
    check(warehouse)


def test_owners_voids_and_late_events_move_costs_with_the_tokens(
    warehouse: Warehouse, project: DbtProject
):
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1", agent="bot"), asked("2"), asked("3")])
    project.must("run")
    assert cost(warehouse) == (6, 0)
    warehouse.insert(
        [asked("4", -1, tenant="late")],
        voids=[("acme", "2")],
        owners=[("bot", START - HOUR, "owner")],
    )
    project.must("run")
    by_tenant = (
        "select tenant_id, sum(cost), sum(unpriced_tokens)::bigint"
        " from token_tracking.daily_token_cost group by 1 order by 1"
    )
    assert warehouse.rows(by_tenant) == [
        ("acme", 2, 0),
        ("late", 0, 1_000_000),  # before the first price
        ("owner", 2, 0),
    ]
    check(warehouse)


def test_currencies_are_never_added(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(2), *of_input(3, hours=1, currency="EUR"))
    warehouse.insert([asked("1"), asked("2", 1)])
    project.must("run")
    assert warehouse.rows(
        "select currency, sum(cost) from token_tracking.daily_token_cost group by 1 order by 1"
    ) == [("EUR", 3), ("USD", 2)]


def test_an_accepted_name_is_priced_from_its_instant_on(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert(
        asked(str(hours), hours, model="deployment", provider=None) for hours in range(3)
    )
    warehouse.record(
        "record_model_aliases",
        {
            "alias": "deployment", "priced_provider": "openai", "priced_model": "gpt-4o",
            "valid_from": at(1),
        },
    )  # fmt: skip
    project.must("run")
    assert cost(warehouse) == (4, 1_000_000)
    warehouse.record("record_model_prices", *of_input(5, hours=2))
    project.must("run")
    assert cost(warehouse) == (7, 1_000_000)
    check(warehouse)


def test_emptied_prices_rebuild_the_costs_alone(warehouse: Warehouse, project: DbtProject):
    warehouse.record("record_model_prices", *of_input(2))
    warehouse.insert([asked("1")])
    project.must("run")
    base = "select basis from token_tracking.build_state where model = 'int_usage__hourly'"
    before = warehouse.rows(base)
    with closing(warehouse.connect()) as connection:
        connection.execute("truncate token_tracking_raw.model_prices")
    project.must("run")
    assert cost(warehouse) == (0, 1_000_000)
    assert warehouse.rows(base) == before
