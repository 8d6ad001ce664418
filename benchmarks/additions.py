"""What a build pays for what is new: in a large hour, among many payers, and a million at once."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from .builds import Resident
from .harness.figures import Figure, median_ratio, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .harness.bench import Bench, Database

SMALL_HOUR, LARGE_HOUR = 70_000, 7_000_000
FEW_PAYERS, MANY_PAYERS, DAYS = 1_000, 100_000, 31
NEW, MUCH, REPETITIONS = 100, 1_000_000, 5

# Straight into the raw table, as the procedures would have left it.
FILL = """
insert into token_tracking_raw.usage_events (
    tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id, input_tokens,
    output_tokens, metadata, occurred_at
)
select
    'tenant-' || number % {tenants},
    '{prefix}-' || lpad(number::text, 9, '0'),
    1000 + number % 4000,
    'llm',
    (array['chat', 'query', 'summarize'])[1 + number % 3],
    (array['gpt-4o', 'claude-sonnet-4'])[1 + number / 7 % 2],
    case when number % 10 < 3 then 'agent-' || number % 200 end,
    900 + number % 4000,
    100,
    '{{}}',
    {occurred_at}
from generate_series({first}::bigint, {last}::bigint) as number
"""
HOUR = "timestamptz '2026-03-10 12:00:00+00' + interval '1 hour' * ((number % 99991) / 99991.0)"
A_DAY_EACH = (
    "timestamptz '2026-03-01 09:00:00+00'"
    " + interval '1 day' * ((number / {tenants}) % 31) + interval '1 second' * (number % 3600)"
)
# What `dbt run` has to do with new events at the least, in one statement.
BY_HAND = """
create temporary table by_hand as
select
    date_trunc('hour', event.occurred_at, 'UTC') as usage_hour,
    (event.occurred_at at time zone 'UTC')::date as usage_date,
    coalesce(owner.owner_tenant_id, event.tenant_id) as payer,
    event.tenant_id, event.agent_id, owner.owner_tenant_id is null as without_owner,
    event.token_type, event.operation, event.model,
    sum(event.tokens)::bigint as tokens, sum(event.input_tokens)::bigint as input_tokens,
    sum(event.output_tokens)::bigint as output_tokens, count(*) as event_count
from token_tracking_raw.usage_events as event
left join lateral (
    select agent_owners.owner_tenant_id
    from token_tracking_raw.agent_owners
    where
        agent_owners.agent_id = event.agent_id
        and agent_owners.valid_from <= event.occurred_at
    order by agent_owners.valid_from desc, agent_owners.revision desc
    limit 1
) as owner on true
where
    event.ingest_xid >= {xid}
    and not exists (
        select 1 from token_tracking_raw.usage_voids as void
        where void.tenant_id = event.tenant_id and void.idempotency_key = event.idempotency_key
    )
group by 1, 2, 3, 4, 5, 6, 7, 8, 9
"""


def fill(
    database: Database, number: int, prefix: str, tenants: int = 50, occurred_at: str = HOUR
) -> None:
    """Record so many events."""
    for first in range(1, number + 1, 1_000_000):
        database.run(
            FILL.format(
                first=first,
                last=min(first + 999_999, number),
                prefix=prefix,
                tenants=tenants,
                occurred_at=occurred_at.format(tenants=tenants),
            )
        )


@contextmanager
def filled(
    bench: Bench, number: int, tenants: int = 50, occurred_at: str = HOUR
) -> Iterator[Resident]:
    """Make a database of so many events, whose first build is over."""
    database = bench.database()
    fill(database, number, "past", tenants, occurred_at)
    database.run("vacuum analyze token_tracking_raw.usage_events")
    with Resident(database, bench.folder / database.env["PGDATABASE"]) as dbt:
        dbt.seconds("build")
        database.run("vacuum analyze")
        database.run("checkpoint")
        yield dbt


def little(command: str, *warehouses: Resident, tenants: int = 50) -> list[list[float]]:
    """Return each warehouse's seconds of builds with a hundred new events each, in turns."""
    seconds: list[list[float]] = [[] for _ in warehouses]
    for repetition in range(REPETITIONS + 1):
        for dbt, taken in zip(warehouses, seconds, strict=True):
            fill(dbt.database, NEW, f"{command}-{repetition}", tenants)
            taken.append(dbt.sql_seconds(command))
    return [taken[1:] for taken in seconds]


def run(bench: Bench) -> list[Figure]:
    """Measure rows 14, 15, 16 and 19."""
    return [*large_hour(bench), many_payers(bench)]


def large_hour(bench: Bench) -> list[Figure]:
    """Measure rows 14, 15 and 19."""
    much, by_hand = [], []
    with filled(bench, SMALL_HOUR) as small, filled(bench, LARGE_HOUR) as large:
        in_small, in_large = little("run", small, large)
        tested_in_small, tested_in_large = little("build", small, large)
        for repetition in range(3):
            xid = small.database.value("select pg_current_xact_id()::text::bigint")
            fill(small.database, MUCH, f"much-{repetition}")
            with closing(small.database.connect()) as connection:
                started = time.perf_counter()
                connection.execute(BY_HAND.format(xid=xid))  # type: ignore[arg-type]
                by_hand.append(time.perf_counter() - started)
            much.append(small.sql_seconds("run"))
    return [
        Figure(
            "14", f"run, 100 new in an hour of {LARGE_HOUR:,}, SQL", spread(in_large, "s", 2),
            f"of {SMALL_HOUR:,}: {spread(in_small, 's', 2)}",
            median_ratio(in_large, in_small), "≤", 1.3,
        ),
        Figure(
            "15", "build with its tests, the same", spread(tested_in_large, "s", 2),
            f"of {SMALL_HOUR:,}: {spread(tested_in_small, 's', 2)}",
            median_ratio(tested_in_large, tested_in_small), "≤", 1.5,
        ),
        Figure(
            "19", f"run, {MUCH:,} new, SQL", spread(much, "s", 2),
            f"one aggregate: {spread(by_hand, 's', 2)}", median_ratio(much, by_hand), "≤", 1.5,
        ),
    ]  # fmt: skip


def many_payers(bench: Bench) -> Figure:
    """Measure row 16."""
    with (
        filled(bench, FEW_PAYERS * DAYS, FEW_PAYERS, A_DAY_EACH) as few,
        filled(bench, MANY_PAYERS * DAYS, MANY_PAYERS, A_DAY_EACH) as many,
    ):
        of_few, of_many = little("run", few, many, tenants=1)
    return Figure(
        "16", f"run, one of {MANY_PAYERS:,} payers, {DAYS} days, SQL", spread(of_many, "s", 2),
        f"of {FEW_PAYERS:,}: {spread(of_few, 's', 2)}", median_ratio(of_many, of_few), "≤", 1.5,
    )  # fmt: skip
