"""The demo: sends ninety days of usage to an embedded server, prices them, then runs dbt."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib import resources
from typing import TYPE_CHECKING, Final, LiteralString, cast

import psycopg
from psycopg.rows import dict_row

from ..client.connection import Connection
from ..embedded.databases import create_database
from ..errors import DemoError
from ..pricing.book import PriceBook, fields_of
from ..raw.schema import apply_schema
from ..refresh.project import Warehouse
from ..tracker import UsageTracker
from .prices import prices_of_usage
from .usage import DAYS, days_of_usage, ownerships

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from ..embedded.server import Server
    from .usage import Day

DATABASE: Final = "demo"
SEED: Final = 1789
_MAX_WAIT: Final = 60.0  # seconds; a slow disk must not change the demo's results

_STATE: Final = """
create schema if not exists token_tracking_demo;
create table if not exists token_tracking_demo.state (
    is_only boolean primary key default true check (is_only),
    end_date date not null,
    seed integer not null,
    size double precision not null,
    sent_at timestamptz,
    built text
)
"""
_COUNTS: Final = """
select
    (select count(*) from token_tracking_raw.usage_events),
    (select count(*) from token_tracking_raw.usage_voids),
    (select count(*) from token_tracking_raw.agent_owners)
"""
_PRICES: Final = """
select
    (select count(*) from token_tracking_raw.model_prices),
    (select count(*) from token_tracking_raw.model_aliases)
"""
_TOTALS: Final = "select to_regclass('token_tracking.monthly_token_usage')::oid::bigint"


@dataclass(frozen=True)
class Story:
    """The parameters that the first run fixed; all later runs use the same ones."""

    end_date: date
    seed: int
    size: float
    is_sent: bool


@dataclass(frozen=True)
class Sent:
    """The outcomes of a run's calls."""

    recorded: int
    known: int
    contradictions: int
    refused: int


@dataclass
class _Told:
    """What was sent: calls with their retries, and the number of rows expected of each kind."""

    calls: int = 0
    contradictions: int = 0
    mistakes: int = 0
    rows: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, day: Day) -> None:
        self.calls += len(day.calls) + len(day.retries)
        self.contradictions += len(day.contradictions)
        self.mistakes += len(day.mistakes)
        self.rows[0] += len(day.calls)
        self.rows[1] += len(day.voided)


class Demo:
    """The demo's database on a running server: creates, fills and builds what is missing.

    Every step can be interrupted at any point; the next run completes it. `folder` receives logs
    and dbt's target files.
    """

    def __init__(self, server: Server, folder: Path, *, database: str = DATABASE) -> None:
        self.server = server
        self.folder = folder
        self.database = database
        self.url = server.url(database)

    def prepare(self, *, size: float = 1.0) -> Story:
        """Create database and raw schema if they are missing; return the parameters stored there.

        `size` applies to a first run: 1.0 is about 130,000 events.
        """
        create_database(self.server, self.database)
        with psycopg.connect(self.url) as connection:
            apply_schema(connection)
            connection.execute(_STATE)
            connection.execute(
                "insert into token_tracking_demo.state (end_date, seed, size) values (%s, %s, %s)"
                " on conflict do nothing",
                (datetime.now(UTC).date(), SEED, size),
            )
            row = connection.execute(
                "select end_date, seed, size, sent_at is not null from token_tracking_demo.state"
            ).fetchone()
        return Story(*cast("tuple[date, int, float, bool]", row))

    def send(self, story: Story, on_progress: Callable[[int, int], object]) -> Sent:
        """Send the story's calls through the API.

        Args:
            story: the result of `prepare`.
            on_progress: called after each day with the number of its calls, and of all days.

        Raises:
            DemoError: valid calls were not recorded.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._counts()
        with _log_in(self.folder / "tracking.log") as log:
            told = asyncio.run(self._send(story, on_progress))
        after = self._counts()
        if missing := sum(
            max(0, most - there) for most, there in zip(told.rows, after, strict=True)
        ):
            message = f"{missing:,} calls are not in the database yet, {log} says why: run it again"
            raise DemoError(message)
        with psycopg.connect(self.url) as connection:
            connection.execute("update token_tracking_demo.state set sent_at = now()")
        recorded = after[0] - before[0]
        return Sent(recorded, told.calls - recorded, told.contradictions, told.mistakes)

    async def _send(self, story: Story, on_progress: Callable[[int, int], object]) -> _Told:
        owners = ownerships(story.end_date)
        told = _Told()
        # Use a separate spool: requests in the user's spool are not for this database.
        async with UsageTracker(
            dsn=self.url, max_wait=_MAX_WAIT, spool_dir=self.folder / "spool"
        ) as tracker:
            for owner in owners:
                await tracker.record_agent_owner(
                    owner.agent_id, owner.owner_tenant_id, owner.valid_from
                )
            for day in days_of_usage(story.end_date, seed=story.seed, size=story.size):
                await tracker.track_many(day.calls)
                wrong = [*day.contradictions, *day.mistakes]
                await asyncio.gather(
                    *(tracker.track_token_usage(**call) for call in [*day.retries, *wrong])
                )
                for voided in day.voided:
                    await tracker.void_usage(
                        voided.tenant_id, voided.idempotency_key, voided.reason
                    )
                told.add(day)
                on_progress(len(day.calls) + len(day.retries), DAYS)
        told.rows[2] = len(owners)
        return told

    def price(self, story: Story) -> str | None:
        """Record what the models cost, and return the source; None if it is recorded already.

        Raises:
            PricesError: genai-prices is not installed.

        """
        with Connection.open(self.url) as database, database.transaction():
            if all(cast("tuple[int, int]", database.execute(_PRICES).fetchone())):
                return None
            found = prices_of_usage(story.end_date)
            book = PriceBook(database)
            book.record("model_prices", [fields_of(price) for price in found.prices])
            book.record("model_aliases", [vars(found.alias)])
        return found.source

    def _counts(self) -> tuple[int, int, int]:
        """Return how many events, voids and ownerships are recorded."""
        with psycopg.connect(self.url) as connection:
            return cast("tuple[int, int, int]", connection.execute(_COUNTS).fetchone())

    def warehouse(self) -> Warehouse:
        """Return the dbt project, for the demo's database.

        Raises:
            WarehouseError: there is no dbt project, or dbt is not installed.

        """
        return Warehouse.find(self.server.environment(self.database), self.folder / "dbt")

    def build(self, warehouse: Warehouse, on_progress: Callable[[int, int], object]) -> bool:
        """Run `dbt build` if data or project changed since the last one; return whether it ran.

        Raises:
            WarehouseError: it failed.

        """
        with psycopg.connect(self.url, autocommit=True) as connection:
            known = connection.execute("select built from token_tracking_demo.state").fetchone()
            if known == (self._state_of(warehouse),):
                return False
            warehouse.build(on_progress)
            connection.execute(
                "update token_tracking_demo.state set built = %s",
                (self._state_of(warehouse),),
            )
        return True

    def _state_of(self, warehouse: Warehouse) -> str:
        with psycopg.connect(self.url) as connection:
            totals = connection.execute(_TOTALS).fetchone()
            prices = connection.execute(_PRICES).fetchone()
        return f"{self._counts()} {prices} {totals} {warehouse.fingerprint()}"

    def rows(
        self, query: str, parameters: Mapping[str, object] | None = None
    ) -> list[dict[str, object]]:
        """Return the rows of one of the demo's queries, named like its file in `queries`."""
        file = resources.files("token_tracking") / "demo" / "queries" / f"{query}.sql"
        text = cast("LiteralString", file.read_text("utf-8"))
        with psycopg.connect(self.url) as connection:
            return connection.cursor(row_factory=dict_row).execute(text, parameters).fetchall()


@contextmanager
def _log_in(file: Path) -> Generator[Path]:
    """Write the package's log to a file, so that it does not disturb the progress bars."""
    log = logging.getLogger("token_tracking")
    handler = logging.FileHandler(file, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    propagated, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield file
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
        handler.close()
