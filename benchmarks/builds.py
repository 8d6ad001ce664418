"""dbt builds: the cost of a build with little new, with everything new, and with nothing new."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from .harness import past, workload
from .harness.figures import Figure, median_ratio, spread
from .harness.peers import timed

if TYPE_CHECKING:
    from typing import Self

    from .harness.bench import Bench, Database

ROOT = Path(__file__).parents[1]
SHORT, MIDDLE, LONG = 1_000_000, 10_000_000, 20_000_000
NEW, REPETITIONS = 10_000, 5
BATCH = "select * from token_tracking_raw.track_token_usage_batch(%s::json)"
SQL_SECONDS = (
    "select sum(total_exec_time) / 1000 from pg_stat_statements"
    " where toplevel and dbid = (select oid from pg_database where datname = current_database())"
)

# The same totals by hand: all five tables, each in one statement, and then their keys.
BY_HAND = """
create schema by_hand;
create table by_hand.hourly as
with events as (
    select
        date_trunc('hour', event.occurred_at, 'UTC') as usage_hour,
        (event.occurred_at at time zone 'UTC')::date as usage_date,
        coalesce(owner.owner_tenant_id, event.tenant_id) as tenant_id,
        event.tenant_id as requester_tenant_id,
        event.agent_id,
        case
            when event.agent_id is null then 'requester'
            when owner.owner_tenant_id is null then 'unknown_agent'
            else 'agent_owner'
        end as attribution_rule,
        event.token_type,
        event.operation,
        coalesce(event.model, 'unknown') as model,
        event.tokens, event.input_tokens, event.output_tokens
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
    where not exists (
        select 1 from token_tracking_raw.usage_voids as void
        where void.tenant_id = event.tenant_id and void.idempotency_key = event.idempotency_key
    )
)
select
    usage_hour, usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule, token_type,
    operation, model, sum(tokens)::bigint as tokens, sum(input_tokens)::bigint as input_tokens,
    sum(output_tokens)::bigint as output_tokens, count(*) as event_count
from events
group by
    usage_hour, usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule, token_type,
    operation, model;
create table by_hand.payers_hourly as
select
    usage_hour, usage_date, tenant_id, token_type, operation, model, sum(tokens)::bigint as tokens,
    sum(input_tokens)::bigint as input_tokens, sum(output_tokens)::bigint as output_tokens,
    sum(event_count)::bigint as event_count
from by_hand.hourly
group by usage_hour, usage_date, tenant_id, token_type, operation, model;
create table by_hand.agents as
select
    usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule,
    sum(tokens)::bigint as tokens, sum(event_count)::bigint as event_count
from by_hand.hourly
where agent_id is not null
group by usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule;
create table by_hand.daily as
select
    usage_date, tenant_id, token_type, operation, model, sum(tokens)::bigint as tokens,
    sum(input_tokens)::bigint as input_tokens, sum(output_tokens)::bigint as output_tokens,
    sum(event_count)::bigint as event_count
from by_hand.hourly
group by usage_date, tenant_id, token_type, operation, model;
create table by_hand.monthly as
select
    date_trunc('month', usage_date)::date as usage_month, tenant_id, token_type, operation, model,
    sum(tokens)::bigint as tokens, sum(input_tokens)::bigint as input_tokens,
    sum(output_tokens)::bigint as output_tokens, sum(event_count)::bigint as event_count
from by_hand.daily
group by usage_month, tenant_id, token_type, operation, model;
create unique index on by_hand.hourly (
    usage_hour, usage_date, tenant_id, requester_tenant_id, agent_id, token_type, operation, model
) nulls not distinct;
alter table by_hand.payers_hourly
add primary key (usage_hour, usage_date, tenant_id, token_type, operation, model);
create unique index on by_hand.agents (
    usage_date, tenant_id, requester_tenant_id, agent_id, attribution_rule
);
alter table by_hand.daily add primary key (usage_date, tenant_id, token_type, operation, model);
alter table by_hand.monthly add primary key (usage_month, tenant_id, token_type, operation, model);
"""


# dbt in one process that has read the project once, as `refresh` does: a command a line.
RESIDENT = """
import json, sys, time, warnings
from dbt.cli.main import dbtRunner
warnings.simplefilter("ignore")
options = [f"--target-path={sys.argv[1]}", f"--log-path={sys.argv[1]}", "--log-level=none"]
manifest = dbtRunner().invoke(["parse", *options]).result
for line in sys.stdin:
    started = time.perf_counter()
    outcome = dbtRunner(manifest=manifest).invoke([*json.loads(line), "--no-write-json", *options])
    said = "" if outcome.success else str(outcome.exception or [
        f"{one.node.name}: {one.message}" for one in outcome.result
        if one.status not in ("success", "pass", "warn", "no-op", "skipped")
    ])
    results = getattr(outcome.result, "results", ())
    nodes = {one.node.unique_id: one.execution_time for one in results}
    print("done", json.dumps([time.perf_counter() - started, said, nodes]), flush=True)
"""


class Resident:
    """A process with the project read for one database."""

    def __init__(self, database: Database, scratch: Path) -> None:
        """Start it."""
        self.database = database
        self._process = subprocess.Popen(
            [sys.executable, "-c", RESIDENT, scratch],
            cwd=ROOT,
            env=_environment(database),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()

    def seconds(self, *command: str) -> float:
        """Run a command of dbt; return its seconds by the clock."""
        return self._run(*command)[0]

    def node_seconds(self, *command: str) -> dict[str, float]:
        """Run a command of dbt, one node after the other; return each one's seconds."""
        return self._run(*command, "--threads", "1")[1]

    def _run(self, *command: str) -> tuple[float, dict[str, float]]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(command)}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("done "):
                seconds, said, nodes = json.loads(line[5:])
                if said:
                    raise RuntimeError(said)
                return seconds, nodes
        message = "dbt's process ended"
        raise RuntimeError(message)

    def sql_seconds(self, *command: str) -> float:
        """Run a command of dbt; return the seconds that the server spent on its statements."""
        self.database.run("select pg_stat_statements_reset()")
        self.seconds(*command, "--threads", "1")
        return float(self.database.value(SQL_SECONDS))


def dbt(database: Database, scratch: Path, *arguments: str) -> float:
    """Run dbt's command line against a database; return its seconds by the clock."""
    program = Path(sys.executable).with_name("dbt")
    started = time.perf_counter()
    done = subprocess.run(
        [program, *arguments, "--quiet", "--target-path", scratch, "--log-path", scratch],
        cwd=ROOT,
        env=_environment(database),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - started


def _environment(database: Database) -> dict[str, str]:
    return {**os.environ, **database.env, "DBT_PROFILES_DIR": str(ROOT)}


def sql_seconds(database: Database, scratch: Path, *arguments: str) -> float:
    """Return the seconds that the server spent on one build's statements."""
    database.run("select pg_stat_statements_reset()")
    dbt(database, scratch, *arguments)
    return float(database.value(SQL_SECONDS))


def run(bench: Bench) -> list[Figure]:
    """Measure rows 9 to 11."""
    short, middle, long = bench.database(), bench.database(), bench.database()
    full: list[float] = []
    by_hand: list[float] = []
    for database, number in ((short, SHORT), (middle, MIDDLE), (long, LONG)):
        past.fill(database, number)
        dbt(database, bench.folder / "target", "build")
    for _ in range(2):
        full.append(
            sql_seconds(
                middle, bench.folder / "target", "run", "--full-refresh", "--threads", "1",
                "--exclude", "daily_token_cost", "monthly_token_cost",
            )
        )  # fmt: skip
        started = time.perf_counter()
        middle.run(BY_HAND)
        by_hand.append(time.perf_counter() - started)
        middle.run("drop schema by_hand cascade")

    little: dict[str, list[float]] = {short.url: [], long.url: []}
    for repetition in range(REPETITIONS + 1):
        for database in (short, long):
            events = workload.recent(NEW, repetition)
            with closing(database.connect()) as connection:
                timed(connection, BATCH, workload.batches(events))
            little[database.url].append(
                sql_seconds(database, bench.folder / "target", "build", "--threads", "1")
            )
    few, many = little[short.url][1:], little[long.url][1:]
    idle = [dbt(short, bench.folder / "target", "build") for _ in range(REPETITIONS + 1)][1:]
    with Resident(short, bench.folder / "resident") as process:
        resident = [process.seconds("build") for _ in range(REPETITIONS + 1)][1:]
    return [
        Figure(
            "9", "10,000 new in 20 million, SQL", spread(many, "s", 2),
            f"in 1 million: {spread(few, 's', 2)}", median_ratio(many, few), "≤", 1.2,
        ),
        Figure(
            "10", "full refresh of 10 million, without costs, SQL", spread(full, "s", 1),
            f"sql: {spread(by_hand, 's', 1)}", median_ratio(full, by_hand), "≤", 1.3,
        ),
        Figure(
            "11", "nothing new, command line", spread(idle, "s", 2), "",
            statistics.median(idle),
            "≤", 6, " s",
        ),
        Figure(
            "11", "nothing new, resident process", spread(resident, "s", 2), "",
            statistics.median(resident), "≤", 1.5, " s",
        ),
    ]  # fmt: skip
