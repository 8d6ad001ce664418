"""What the marts must hold, computed without dbt or SQL: plain loops over the raw rows."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from tests.support import ROOT
from token_tracking.event.labels import Operation, TokenType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import psycopg

TOKEN_TYPES = (*(label.value for label in TokenType), "unknown")
OPERATIONS = (*(label.value for label in Operation), "unknown")
ALIASES = ROOT / "seeds" / "label_aliases.csv"

Marts = dict[str, list[tuple[object, ...]]]

KINDS = ("cache_read", "cache_write", "cache_write_long", "reasoning")


@dataclass(frozen=True)
class Snapshot:
    """The text form of a pg_snapshot, read by its documentation."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read 'xmin:xmax:xip,xip,...'."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))

    def sees(self, xid: int) -> bool:
        """Return whether a committed transaction had committed when the snapshot was taken."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.in_progress)


@dataclass(frozen=True)
class Raw:
    """The committed rows of the raw tables, as dictionaries."""

    events: list[dict[str, object]]
    voids: list[dict[str, object]]
    owners: list[dict[str, object]]

    @classmethod
    def read(cls, connection: psycopg.Connection[tuple]) -> Raw:
        """Read all three tables."""

        def rows(table: str) -> list[dict[str, object]]:
            cursor = connection.execute(f"select * from token_tracking_raw.{table}")  # type: ignore[arg-type]
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return cls(rows("usage_events"), rows("usage_voids"), rows("agent_owners"))

    def as_of(self, snapshot: Snapshot) -> Raw:
        """Return the rows that the snapshot sees."""

        def seen(rows: Iterable[dict[str, object]]) -> list[dict[str, object]]:
            return [row for row in rows if snapshot.sees(row["ingest_xid"])]  # type: ignore[arg-type]

        return Raw(seen(self.events), seen(self.voids), seen(self.owners))


def packaged_aliases() -> dict[tuple[str, str], str]:
    """Read the seed: (label_kind, alias) to label."""
    with ALIASES.open(newline="") as file:
        return {(row["label_kind"], row["alias"]): row["label"] for row in csv.DictReader(file)}


@dataclass(frozen=True)
class Settings:
    """The settings of a build."""

    billing_timezone: str = "UTC"
    token_types: tuple[str, ...] = TOKEN_TYPES
    operations: tuple[str, ...] = OPERATIONS
    aliases: Mapping[tuple[str, str], str] = field(default_factory=packaged_aliases)
    price_lists: tuple[str, ...] = ("list",)


def count(raw: Raw, settings: Settings) -> Marts:
    """Return the rows of every mart, sorted."""
    zone = ZoneInfo(settings.billing_timezone)
    totals: dict[str, dict[tuple[object, ...], list[int]]] = defaultdict(
        lambda: defaultdict(lambda: [0] * 8)
    )
    days: dict[str, set[date]] = defaultdict(set)
    per_type: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    for event, payer, rule, token_type, operation in attributed(raw, settings):
        requester, agent = str(event["tenant_id"]), event["agent_id"]
        occurred_at = event["occurred_at"]
        assert isinstance(occurred_at, datetime)
        model = "unknown" if event["model"] is None else event["model"]
        day = occurred_at.astimezone(zone).date()
        hour = occurred_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        tokens = event["tokens"]
        assert isinstance(tokens, int)
        kinds = [event[f"{kind}_tokens"] or 0 for kind in KINDS]
        numbers = (tokens, event["input_tokens"] or 0, event["output_tokens"] or 0, 1, *kinds)

        def add(mart: str, *key: object, numbers: tuple[object, ...] = numbers) -> None:
            row = totals[mart][key]
            for place, number in enumerate(numbers):
                row[place] += number  # type: ignore[operator]

        labels = (payer, token_type, operation, model)
        add("hourly_token_usage", hour, day, *labels)
        add("daily_token_usage", day, *labels)
        add("monthly_token_usage", day.replace(day=1), *labels)
        if agent is not None:
            add("daily_agent_token_usage", day, payer, requester, agent, rule, numbers=(tokens, 1))
        if token_type == "unknown":
            add("unmapped_labels", "token_type", event["token_type"], numbers=(tokens, 1))
        if operation == "unknown":
            add("unmapped_labels", "operation", event["operation"], numbers=(tokens, 1))
        add("tenant_token_usage", payer, numbers=(tokens, 1))
        per_type[payer][token_type] += tokens
        days[payer].add(day)

    width = {"daily_agent_token_usage": 2, "unmapped_labels": 2}
    marts: Marts = {
        mart: sorted(
            ((*key, *row[: width.get(mart, 8)]) for key, row in totals[mart].items()), key=repr
        )
        for mart in (
            "hourly_token_usage",
            "daily_token_usage",
            "monthly_token_usage",
            "daily_agent_token_usage",
            "unmapped_labels",
        )
    }
    marts["tenant_token_usage"] = sorted(
        (
            (
                tenant,
                *(per_type[tenant][label] for label in TOKEN_TYPES),
                tokens,
                events,
                min(days[tenant]),
                max(days[tenant]),
                *(
                    per_type[tenant][label]
                    for label in settings.token_types
                    if label not in TOKEN_TYPES
                ),
            )
            for (tenant,), (tokens, events, *_) in totals["tenant_token_usage"].items()
        ),
        key=repr,
    )
    return marts


def attributed(
    raw: Raw, settings: Settings
) -> Iterator[tuple[dict[str, object], str, str, str, str]]:
    """Return each event that counts, with payer, rule, token type and operation."""
    voided = {(void["tenant_id"], void["idempotency_key"]) for void in raw.voids}
    owners = _owners(raw.owners)
    for event in raw.events:
        if (event["tenant_id"], event["idempotency_key"]) in voided:
            continue
        requester, agent = str(event["tenant_id"]), event["agent_id"]
        occurred_at = event["occurred_at"]
        assert isinstance(occurred_at, datetime)
        payer, rule = requester, "requester"
        if agent is not None:
            owner = _owner_at(owners.get(str(agent), []), occurred_at)
            payer, rule = (requester, "unknown_agent") if owner is None else (owner, "agent_owner")
        token_type = _label("token_type", str(event["token_type"]), settings.token_types, settings)
        operation = _label("operation", str(event["operation"]), settings.operations, settings)
        yield event, payer, rule, token_type, operation


def _owners(rows: list[dict[str, object]]) -> dict[str, list[tuple[datetime, str | None]]]:
    latest: dict[tuple[str, datetime], tuple[int, str | None]] = {}
    for row in rows:
        key = (row["agent_id"], row["valid_from"])
        if key not in latest or row["revision"] > latest[key][0]:  # type: ignore[operator,index]
            latest[key] = (row["revision"], row["owner_tenant_id"])  # type: ignore[index,assignment]
    periods: dict[str, list[tuple[datetime, str | None]]] = defaultdict(list)
    for (agent, valid_from), (_, owner) in sorted(latest.items()):
        periods[agent].append((valid_from, owner))
    return periods


def _owner_at(periods: list[tuple[datetime, str | None]], instant: datetime) -> str | None:
    owner = None
    for valid_from, whose in periods:
        if valid_from <= instant:
            owner = whose
    return owner


def _label(kind: str, text: str, labels: tuple[str, ...], settings: Settings) -> str:
    if text in labels:
        return text
    meant = settings.aliases.get((kind, text))
    return meant if meant in labels else "unknown"
