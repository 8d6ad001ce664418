"""Ninety days of usage of a fictitious platform, the same for the same seed."""

# ruff: noqa: S311  # the random numbers must be repeatable, not secret

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final, Required, TypedDict
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


DAYS: Final = 90
DAYS_LATE: Final = 2
SHARE_OF_RETRIES: Final = 0.01
SHARE_OF_LATE_CALLS: Final = 0.004
SHARE_OF_MISSPELT: Final = 0.02  # of the summaries of one tenant
MISSPELT: Final = ("sumarize", "summarice")  # dbt's aliases repair the first of them

# Calls by hour of the tenant's own day, from midnight: work, lunch, a few in the evening.
_HOURS: Final = (
    1,
    1,
    1,
    1,
    1,
    2,
    5,
    14,
    38,
    62,
    70,
    66,
    44,
    58,
    68,
    64,
    52,
    34,
    18,
    12,
    9,
    6,
    3,
    2,
)
_WEEKDAYS: Final = (1.0, 1.08, 1.1, 1.04, 0.86, 0.22, 0.17)  # from Monday


class Event(TypedDict, total=False):
    """A call, by the arguments of `track_token_usage`."""

    tenant_id: Required[str]
    idempotency_key: Required[str]
    tokens: int
    token_type: str
    operation: str
    model: str
    agent_id: str
    conversation_id: str
    collection_id: str
    input_tokens: Required[int]
    output_tokens: int
    provider: str
    cache_read_tokens: int
    metadata: dict[str, object]
    occurred_at: Required[datetime]


@dataclass(frozen=True)
class Tenant:
    """A customer of the platform; `calls` is the number of calls on a working day at full size."""

    name: str
    timezone: str
    calls: int
    agents: Mapping[str, float]  # share of its agent calls, by agent


@dataclass(frozen=True)
class Agent:
    """An agent and its owner; `sold_to` owns it from the middle of the period on."""

    name: str
    owner: str
    sold_to: str | None = None


@dataclass(frozen=True)
class Service:
    """One kind of call; sizes are medians of log-normal distributions.

    `cached` is the share of the input that the provider reads from its cache.
    """

    name: str
    share: float
    operation: str
    models: tuple[str, ...]
    input_median: int
    output_median: int | None  # None: an embedding has no output
    spread: float
    uses_agent: bool = False
    cached: float = 0


TENANTS: Final = (
    Tenant(
        "atlas-bank",
        "America/New_York",
        780,
        {"contract-reviewer": 0.7, "support-triage": 0.3},
    ),
    Tenant(
        "nordlicht-logistik",
        "Europe/Berlin",
        420,
        {"route-planner": 0.5, "support-triage": 0.3, "contract-reviewer": 0.2},
    ),
    Tenant("sakura-retail", "Asia/Tokyo", 260, {"shelf-planner": 0.8, "support-triage": 0.2}),
    Tenant("ganga-health", "Asia/Kolkata", 150, {"clinic-notes": 0.9, "contract-reviewer": 0.1}),
    Tenant(
        "lunar-labs",
        "America/Los_Angeles",
        60,
        {"support-triage": 0.6, "route-planner": 0.25, "prototype-x": 0.15},
    ),
    Tenant("tiny-cafe", "Pacific/Auckland", 5, {"support-triage": 1.0}),
)
AGENTS: Final = (
    Agent("contract-reviewer", "atlas-bank"),
    Agent("route-planner", "nordlicht-logistik"),
    Agent("shelf-planner", "sakura-retail"),
    Agent("clinic-notes", "ganga-health"),
    Agent("support-triage", "lunar-labs", sold_to="nordlicht-logistik"),
    # prototype-x is used, but its owner was never recorded.
)
SERVICES: Final = (
    Service("query", 0.40, "query", ("gpt-4o-mini", "gpt-4o"), 1400, 220, 0.7),
    Service(
        "chat",
        0.27,
        "chat",
        ("gpt-4o", "claude-sonnet-4", "gpt-4o-mini"),
        900,
        260,
        0.9,
        uses_agent=True,
        cached=0.55,
    ),
    Service("search", 0.20, "vector_search", ("text-embedding-3-small",), 24, None, 0.6),
    Service("summary", 0.06, "summarize", ("claude-sonnet-4", "gpt-4o-mini"), 5200, 420, 0.8),
    Service("extract", 0.04, "extraction", ("gpt-4o-mini",), 2600, 310, 0.6),
    Service("classify", 0.03, "classification", ("gpt-4o-mini",), 380, 8, 0.5),
)
_INGESTION: Final = Service("ingest", 0, "batch", ("text-embedding-3-large",), 7400, None, 0.35)
_TUNING: Final = Service("tune", 0, "internal", ("gpt-4o-mini-tuned",), 1_800_000, None, 0.3)
MODELS: Final = frozenset(
    model for service in (*SERVICES, _INGESTION, _TUNING) for model in service.models
)


@dataclass(frozen=True)
class Ownership:
    """Who owns an agent from an instant on."""

    agent_id: str
    owner_tenant_id: str
    valid_from: datetime


@dataclass(frozen=True)
class Voided:
    """An event that must not count, and why."""

    tenant_id: str
    idempotency_key: str
    reason: str


@dataclass
class Day:
    """The calls that services send on one day, in this order.

    `calls` are new events, a few of them from two days before. `retries` repeat a call with the
    same key, `contradictions` reuse a key for another payload, `mistakes` break a rule.
    """

    date: date
    calls: list[Event]
    retries: list[Event] = field(default_factory=list["Event"])
    contradictions: list[Event] = field(default_factory=list["Event"])
    mistakes: list[Event] = field(default_factory=list["Event"])
    voided: list[Voided] = field(default_factory=list[Voided])


def ownerships(end: date, days: int = DAYS) -> list[Ownership]:
    """Return the owners of the agents in the days before `end`."""
    begin = datetime.combine(end - timedelta(days=days + 1), time(), UTC)
    sale = datetime.combine(end - timedelta(days=days - days // 2), time(), UTC)
    return [
        *(Ownership(agent.name, agent.owner, begin) for agent in AGENTS),
        *(Ownership(agent.name, agent.sold_to, sale) for agent in AGENTS if agent.sold_to),
    ]


def days_of_usage(end: date, *, seed: int, size: float = 1.0, days: int = DAYS) -> Iterator[Day]:
    """Return the days before `end`, oldest first: the same for the same arguments.

    Args:
        end: no event is at or after its midnight in UTC.
        seed: seed of the random numbers.
        size: 1.0 makes about 130,000 events in 90 days.
        days: number of days.

    """
    midnight = datetime.combine(end, time(), UTC)
    delayed: dict[date, list[Event]] = {}
    for number in range(days):
        today = end - timedelta(days=days - number)
        chance = random.Random(f"{seed} {today}")
        made = [
            event
            for tenant in TENANTS
            for event in _calls(tenant, today, size * (0.85 + 0.4 * number / days), seed)
            if event["occurred_at"] < midnight
        ]
        on_time: list[Event] = []
        late: list[Event] = []
        arrival = today + timedelta(days=DAYS_LATE)
        for event in made:
            is_late = arrival < end and chance.random() < SHARE_OF_LATE_CALLS
            (late if is_late else on_time).append(event)
        for event in late:
            event["metadata"] = {"delivered": "late"}
        delayed[arrival] = late
        day = Day(today, on_time + delayed.pop(today, []))
        day.retries = [event for event in day.calls if chance.random() < SHARE_OF_RETRIES]
        _add_mishaps(day, number, chance)
        yield day


def _calls(tenant: Tenant, day: date, size: float, seed: int) -> Iterator[Event]:
    # One generator for each day and tenant: a change of one does not affect the others.
    chance = random.Random(f"{seed} {day} {tenant.name}")
    expected = tenant.calls * size * _WEEKDAYS[day.weekday()] * chance.lognormvariate(0, 0.08)
    zone = ZoneInfo(tenant.timezone)
    shares = [service.share for service in SERVICES]
    agents, weights = list(tenant.agents), list(tenant.agents.values())
    for number, hour in enumerate(
        chance.choices(range(24), _HOURS, k=math.floor(expected + chance.random()))
    ):
        service = chance.choices(SERVICES, shares)[0]
        # The tenant's local time: its time zone defines its days and its summer time.
        at = datetime.combine(day, time(hour), zone) + timedelta(seconds=3600 * chance.random())
        event = _event(tenant, day, f"{service.name}-{number:05d}", service, at, chance)
        event["metadata"] = {
            "operation_id": f"op-{chance.getrandbits(32):08x}",
            "execution_time_ms": round(chance.lognormvariate(6.3, 0.6)),
        }
        if service.uses_agent:
            event["agent_id"] = chance.choices(agents, weights)[0]
            event["conversation_id"] = f"conversation-{day:%Y%m%d}-{number // 6:04d}"
        if service.name == "search":
            event["token_type"] = "embedding"  # noqa: S105
            event["collection_id"] = f"{tenant.name}-documents"
        misspells = tenant.name == "sakura-retail" and service.name == "summary"
        if misspells and chance.random() < SHARE_OF_MISSPELT:
            event["operation"] = chance.choice(MISSPELT)
        yield event
    yield from _ingestion(tenant, day, size, zone, chance)
    if tenant.name == "atlas-bank" and day.weekday() == 5 and day.day <= 7:
        at = datetime.combine(day, time(4, 30), zone)
        event = _event(tenant, day, "tune-00000", _TUNING, at, chance)
        event["token_type"] = "fine_tuning"  # noqa: S105
        yield event


def _ingestion(
    tenant: Tenant, day: date, size: float, zone: ZoneInfo, chance: random.Random
) -> Iterator[Event]:
    """Yield the calls of a night that embeds a customer's new documents within ten minutes."""
    if tenant.calls < 100 or day.weekday() > 4 or chance.random() > 0.12:
        return
    start = datetime.combine(day, time(3, chance.randrange(50)), zone)
    collection = f"{tenant.name}-documents"
    for number in range(math.floor(chance.uniform(0.15, 0.45) * tenant.calls * size)):
        at = start + timedelta(seconds=600 * chance.random())
        event = _event(tenant, day, f"ingest-{number:05d}", _INGESTION, at, chance)
        event["token_type"] = "embedding"  # noqa: S105
        event["collection_id"] = collection
        event["metadata"] = {"document_ids": [f"document-{day:%Y%m%d}-{number:04d}"]}
        yield event


def _event(
    tenant: Tenant, day: date, name: str, service: Service, at: datetime, chance: random.Random
) -> Event:
    event: Event = {
        "tenant_id": tenant.name,
        "idempotency_key": f"{day:%Y%m%d}-{name}",
        "operation": service.operation,
        "model": chance.choices(service.models, range(len(service.models), 0, -1))[0],
        "input_tokens": _tokens(service.input_median, service.spread, chance),
        "occurred_at": at.astimezone(UTC),
    }
    if service.output_median is not None:
        event["output_tokens"] = _tokens(service.output_median, service.spread, chance)
    event["provider"] = "anthropic" if event["model"].startswith("claude") else "openai"
    if service.cached:
        event["cache_read_tokens"] = round(service.cached * event["input_tokens"])
    return event


def _tokens(median: int, spread: float, chance: random.Random) -> int:
    return max(1, round(median * chance.lognormvariate(0, spread)))


def _add_mishaps(day: Day, number: int, chance: random.Random) -> None:
    """Add the errors that happen on a platform now and then."""
    if not day.calls:
        return
    event = chance.choice(day.calls)
    if number % 16 == 5:
        day.contradictions.append({**event, "input_tokens": event["input_tokens"] + 1000})
    fresh: Event = {**event, "idempotency_key": f"{day.date:%Y%m%d}-mistake"}
    if number % 40 == 11:
        day.mistakes.append({**fresh, "input_tokens": -12})
    if number % 40 == 23:
        day.mistakes.append({**fresh, "tokens": 1})
    if number % 40 == 31:
        naive = event["occurred_at"].replace(tzinfo=None)
        day.mistakes.append({**fresh, "occurred_at": naive})
    if number == 60:
        test: list[Event] = [
            {
                **event,
                "tenant_id": "lunar-labs",
                "idempotency_key": f"{day.date:%Y%m%d}-load-test-{call:03d}",
                "metadata": {"purpose": "load test"},
            }
            for call in range(40)
        ]
        day.calls += test
        day.voided += [
            Voided("lunar-labs", call["idempotency_key"], "load test, not usage") for call in test
        ]
