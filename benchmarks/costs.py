"""Costs: rating a year, ten thousand new events with and without costs, and a corrected price."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import TYPE_CHECKING

from .builds import Resident
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from .harness.bench import Bench, Database

# Nearly as many rows of the base: of 8.8 million hours, payers and models, few have two events.
EVENTS, NEW, REPETITIONS = 1_060_000, 10_000, 5
PRICES, MODELS, TENANTS = 6_800, 20, 50
COSTS = ("daily_token_cost", "monthly_token_cost")
# Models and tests that a project without prices would not have.
OF_COSTS = re.compile("cost|price|cache_savings|model_aliases")

FILL = """
insert into token_tracking_raw.usage_events (
    tenant_id, idempotency_key, tokens, token_type, operation, model, provider, input_tokens,
    output_tokens, cache_read_tokens, metadata, occurred_at
)
select
    'tenant-' || abs(hashint8(number)) % {tenants},
    '{prefix}-' || lpad(number::text, 9, '0'),
    1500 + number % 4000,
    'llm',
    'chat',
    'model-' || abs(hashint8(number * 7)) % {models},
    'openai',
    1000 + number % 4000,
    500,
    number % 1000,
    '{{}}',
    {occurred_at}
from generate_series(1, {count}::bigint) as number
"""
SECOND = "abs(hashint8(number * 13)) % 31536000"
A_YEAR = f"timestamptz '2025-03-01 00:00+00' + interval '1 second' * ({SECOND})"
NOW = "timestamptz '2026-02-28 12:00+00' + interval '1 second' * (number % 3600)"
# Each model's price of each kind changes every month and for long requests; the rest are prices of
# other models.
FILL_PRICES = """
insert into token_tracking_raw.model_prices (
    price_list, provider, model, token_kind, service_tier, context_over, valid_from, revision,
    currency, amount, recorded_by
)
select
    'list', 'openai', 'model-' || models.number, kinds.name, 'standard', bounds.context_over,
    months.valid_from, 1, 'USD', 1 + models.number * 0.1 + extract(month from months.valid_from),
    'bench'
from generate_series(0, 10000) as models (number)
cross join unnest(array['input', 'cache_read', 'output', 'reasoning']) as kinds (name)
cross join unnest(array[0, 200000]) as bounds (context_over)
cross join generate_series(
    timestamptz '2025-03-01 00:00+00', '2026-03-01 00:00+00', interval '1 month'
) as months (valid_from)
order by models.number
limit {prices}
"""
CORRECTION = """
insert into token_tracking_raw.model_prices (
    price_list, provider, model, token_kind, service_tier, context_over, valid_from, revision,
    currency, amount, recorded_by
)
select
    price_list, provider, model, token_kind, service_tier, context_over, valid_from,
    max(revision) + 1, currency, max(amount) + 0.01, 'bench'
from token_tracking_raw.model_prices
where
    model = 'model-7' and token_kind = 'input' and context_over = 0
    and valid_from = '2025-08-01 00:00+00'
group by 1, 2, 3, 4, 5, 6, 7, 9
"""
# What costs are without a base: the price of each event.
BY_EVENT = """
create temporary table by_event as
select
    (events.occurred_at at time zone 'UTC')::date as usage_date,
    events.tenant_id, events.token_type, events.operation, events.provider, events.model,
    kinds.name as token_kind, prices.currency,
    sum(kinds.tokens) as tokens,
    sum(kinds.tokens * prices.amount) * 0.000001 as cost
from token_tracking_raw.usage_events as events
cross join lateral (values
    ('input', input_tokens - cache_read_tokens), ('cache_read', cache_read_tokens),
    ('output', output_tokens)
) as kinds (name, tokens)
left join lateral (
    select currency, amount
    from token_tracking_raw.model_prices
    where
        price_list = 'list' and provider = events.provider and model = events.model
        and token_kind = kinds.name and service_tier = coalesce(events.service_tier, 'standard')
        and (context_over = 0 or context_over < events.input_tokens)
        and valid_from <= events.occurred_at
    order by context_over desc, valid_from desc, revision desc
    limit 1
) as prices on true
where kinds.tokens > 0
group by 1, 2, 3, 4, 5, 6, 7, 8
"""


def fill(database: Database, count: int, prefix: str, occurred_at: str) -> None:
    """Record so many events."""
    database.run(
        FILL.format(
            count=count, prefix=prefix, occurred_at=occurred_at, tenants=TENANTS, models=MODELS
        )
    )


def run(bench: Bench) -> list[Figure]:
    """Measure rows 21 to 23."""
    database = bench.database()
    fill(database, EVENTS, "past", A_YEAR)
    database.run(FILL_PRICES.format(prices=PRICES))
    database.run("vacuum analyze")
    whole, by_event, corrected, with_costs, without = [], [], [], [], []
    with Resident(database, bench.folder / "resident") as dbt:
        dbt.seconds("build")
        database.run("vacuum analyze")
        rows = database.value("select count(*) from token_tracking.int_usage__hourly")
        for _ in range(2):
            whole.append(dbt.sql_seconds("run", "--full-refresh", "--select", *COSTS))
            with closing(database.connect()) as connection:
                started = time.perf_counter()
                connection.execute(BY_EVENT)
                by_event.append(time.perf_counter() - started)
        database.run("vacuum analyze")
        for _ in range(REPETITIONS):
            database.run(CORRECTION)
            corrected.append(dbt.sql_seconds("run"))
        dbt.seconds("build")
        for repetition in range(REPETITIONS + 1):
            fill(database, NEW, f"new-{repetition}", NOW)
            nodes = dbt.node_seconds("build")
            with_costs.append(sum(nodes.values()))
            without.append(sum(nodes[name] for name in nodes if not OF_COSTS.search(name)))
    return [
        Figure(
            "21", f"all costs of {rows:,} rows of the base, {PRICES:,} prices, SQL",
            spread(whole, "s", 1), f"by event: {spread(by_event, 's', 1)}",
            median_ratio(whole, by_event), "≤", 1,
        ),
        Figure(
            "22", f"build, {NEW:,} new, all nodes", spread(with_costs[1:], "s", 2),
            f"those without costs: {spread(without[1:], 's', 2)}",
            median_ratio(with_costs[1:], without[1:]), "≤", 1.3,
        ),
        Figure(
            "23", "run after a correction of a model's price of a month, SQL",
            spread(corrected, "s", 2), f"all costs: {spread(whole, 's', 1)}",
            median_ratio(corrected[:2], whole), "≤", 0.1,
        ),
    ]  # fmt: skip
