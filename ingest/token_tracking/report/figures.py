"""The figures of one month, read from the marts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg

from ..errors import ReportError
from ..marts.reader import WHO_READS_ALL, Reader
from .costs import read_costs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .costs import Costs, NoCosts
    from .reading import Reading

MONTHS_SHOWN: Final = 13
_BUILD: Final = "`dbt build` in a checkout of the repository makes them"
_ONE_DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Amount:
    """Tokens and the calls that used them; the parts are 0 if no call reported them."""

    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    event_count: int = 0


@dataclass(frozen=True, kw_only=True)
class Day(Amount):
    """One day of the billing time zone."""

    day: date


@dataclass(frozen=True, kw_only=True)
class Month(Amount):
    """One month of the billing time zone, named by its first day."""

    month: date


@dataclass(frozen=True)
class Part:
    """The tokens of one operation, model or tenant in the month and in the days before it."""

    name: str
    tokens: int
    event_count: int
    tokens_before: int


@dataclass(frozen=True)
class PartOfDay:
    """The tokens of one operation or model on a day."""

    day: date
    name: str
    tokens: int


@dataclass(frozen=True)
class AgentUse:
    """Which tenant used which tenant's agent; `requester` is None if the reader may not see it."""

    agent: str
    payer: str
    requester: str | None
    rule: str
    tokens: int
    event_count: int


@dataclass(frozen=True)
class Build:
    """The build of a mart; the times are local times of the billing time zone."""

    model: str
    run_number: int
    snapshot: str
    zone: str
    as_of: datetime
    read_at: datetime


@dataclass(frozen=True)
class Period:
    """A month, and the days of the previous month to compare it with; ends are exclusive.

    A month that is not over is compared up to its last day with usage.
    """

    month: date
    end: date
    until: date
    before: date
    before_until: date

    @classmethod
    def of(cls, month: date, as_of: date, last_day: date) -> Period:
        """Return the period of a month that has usage until `last_day`."""
        end = _month_after(month)
        until = end if as_of >= end else last_day + _ONE_DAY
        before = (month - _ONE_DAY).replace(day=1)
        before_until = month if until == end else min(before + (until - month), month)
        return cls(month, end, until, before, before_until)

    @property
    def is_complete(self) -> bool:
        """Return whether the whole month is counted."""
        return self.until == self.end


@dataclass(frozen=True)
class Scope:
    """The scope of the figures: whose usage, which period, and which reader."""

    tenant: str | None
    period: Period
    daily: Build
    builds: Mapping[str, Build]
    role: str
    is_restricted: bool

    @property
    def values(self) -> dict[str, object]:
        """Return the parameters of the queries."""
        return {
            "tenant": self.tenant,
            "month": self.period.month,
            "month_end": self.period.end,
            "before": self.period.before,
            "before_until": self.period.before_until,
            "zone": self.daily.zone,
            "snapshot": self.daily.snapshot,
        }


@dataclass(frozen=True)
class Figures:
    """All figures of the month from the marts. Parts are sorted, the greatest first."""

    scope: Scope
    days: Sequence[Day]
    months: Sequence[Month]
    operations: Sequence[Part]
    models: Sequence[Part]
    tenants: Sequence[Part]
    operation_days: Sequence[PartOfDay]
    model_days: Sequence[PartOfDay]
    agents: Sequence[AgentUse]
    costs: Costs | NoCosts

    @property
    def total(self) -> Amount:
        """Return the sum of the days."""
        names = [field.name for field in fields(Amount)]
        return Amount(*(sum(getattr(day, name) for day in self.days) for name in names))

    @property
    def paid_for_others(self) -> int:
        """Return the tokens of calls by one tenant that another one paid as the agent's owner."""
        return sum(use.tokens for use in self.agents if use.requester != use.payer)

    @property
    def tokens_before(self) -> int:
        """Return the tokens of the days that the month is compared with."""
        return sum(part.tokens_before for part in self.operations)


@dataclass(frozen=True)
class _Name:
    name: str


def builds_of(reading: Reading, schema: str) -> Mapping[str, Build]:
    """Return the builds of the marts.

    Raises:
        ReportError: there are no marts, or an older version built them.

    """
    try:
        builds = {build.model: build for build in reading.rows("builds", Build)}
    except psycopg.errors.UndefinedTable:
        builds = dict[str, Build]()
    except psycopg.errors.UndefinedColumn as error:
        message = f"the marts in schema {schema!r} were built by an older version: {_BUILD} again"
        raise ReportError(message) from error
    if missing := {"daily_token_usage", "monthly_token_usage", "daily_agent_token_usage"} - set(
        builds
    ):
        message = f"schema {schema!r} has no built {', '.join(sorted(missing))}: {_BUILD}"
        raise ReportError(message)
    return builds


def read_figures(
    reading: Reading, builds: Mapping[str, Build], month: date | None, tenant: str | None
) -> Figures | None:
    """Return the figures of a month, by default the latest with usage; None if there is no usage.

    Raises:
        ReportError: the tenant is unknown, has no usage in the month, or the role cannot see it.

    """
    months = reading.rows("months", Month, {"tenant": tenant})
    reader = Reader.of(reading.database)
    if not months:
        if reader.is_restricted:
            whose = "" if tenant is None else f" that {tenant!r} pays for"
            message = (
                f"row-level security shows the role {reader.role!r} no usage{whose}: "
                f"{WHO_READS_ALL}; a tenant's reader needs its row in "
                "token_tracking_raw.tenant_readers"
            )
            raise ReportError(message)
        if tenant is not None:
            raise ReportError(_unknown_tenant(reading, tenant))
        if month is not None:
            message = f"no usage in {month:%Y-%m}: there is none at all yet"
            raise ReportError(message)
        return None
    chosen = month or months[-1].month
    if chosen not in {known.month for known in months}:
        whose = "" if tenant is None else f" that {tenant!r} pays for"
        first, last = months[0].month, months[-1].month
        message = f"no usage{whose} in {chosen:%Y-%m}; there is from {first:%Y-%m} to {last:%Y-%m}"
        raise ReportError(message)

    daily = builds["daily_token_usage"]
    end = _month_after(chosen)
    days = reading.rows("days", Day, {"tenant": tenant, "month": chosen, "month_end": end})
    last_day = days[-1].day if days else chosen
    scope = Scope(
        tenant,
        Period.of(chosen, daily.as_of.date(), last_day),
        daily,
        builds,
        reader.role,
        reader.is_restricted,
    )
    values = scope.values
    return Figures(
        scope=scope,
        days=_every_day(days, scope.period),
        months=_every_month(months, chosen),
        operations=reading.rows("by", Part, values, dimension="operation"),
        models=reading.rows("by", Part, values, dimension="model"),
        tenants=reading.rows("by", Part, values, dimension="tenant_id"),
        operation_days=reading.rows("days_by", PartOfDay, values, dimension="operation"),
        model_days=reading.rows("days_by", PartOfDay, values, dimension="model"),
        agents=reading.rows("agents", AgentUse, values),
        costs=read_costs(reading, scope),
    )


def _unknown_tenant(reading: Reading, tenant: str) -> str:
    known = [row.name for row in reading.rows("tenants", _Name)]
    close = difflib.get_close_matches(tenant, known, n=3)
    hint = f"; there is {', '.join(repr(name) for name in close)}" if close else ""
    return f"unknown tenant {tenant!r}: it pays for no usage{hint}"


def _every_day(days: Sequence[Day], period: Period) -> list[Day]:
    known = {day.day: day for day in days}
    every = (period.month + n * _ONE_DAY for n in range((period.until - period.month).days))
    return [known.get(day, Day(day=day)) for day in every]


def _every_month(months: Sequence[Month], last: date) -> list[Month]:
    """Return all months up to `last`, including those without usage."""
    known = {month.month: month for month in months}
    every = [months[0].month]
    while every[-1] < last:
        every.append(_month_after(every[-1]))
    return [known.get(month, Month(month=month)) for month in every[-MONTHS_SHOWN:]]


def _month_after(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)
