"""The tables of a report: their content, not their appearance."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from .costs import Cost, Costs, exact_sum
from .figures import Amount
from .top import top_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

    from .costs import CostOfDay
    from .figures import AgentUse, Day, Figures, Month, Part, PartOfDay
    from .top import Top

TENANTS_SHOWN: Final = 25
MODELS_SHOWN: Final = 25
AGENT_USES_SHOWN: Final = 50
UNPRICED_SHOWN: Final = 25
SERIES_SHOWN: Final = 6


@dataclass(frozen=True)
class Name:
    """A name from the data, which may be any text; `series` is its colour in the chart."""

    text: str
    series: int | None = None


@dataclass(frozen=True)
class Share:
    """A part of a whole."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        """Return the ratio; None if the whole is 0."""
        return self.part / self.whole if self.whole else None


@dataclass(frozen=True)
class Change:
    """A number and its previous value."""

    now: int
    before: int

    @property
    def value(self) -> float | None:
        """Return the growth as a ratio; None if the previous value is 0."""
        return self.now / self.before - 1 if self.before else None


@dataclass(frozen=True)
class Money:
    """An exact amount, which only its text rounds."""

    amount: Decimal
    currency: str

    @property
    def exact(self) -> str:
        """Return all digits."""
        digits = f"{self.amount:f}"
        return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {self.currency}"


@dataclass(frozen=True)
class WithoutPrice:
    """Tokens that are in no amount beside them."""

    unpriced_tokens: int


Value = str | int | Name | Share | Change | Money | WithoutPrice | None


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are right-aligned and sorted with the greatest first."""

    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; `foot` stays at the bottom in any sort order."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    foot: Sequence[Sequence[Value]] = ()
    sorted_by: int | None = None
    descending: bool = True


@dataclass(frozen=True)
class CostColumns:
    """The columns beside tokens: a cost in each currency, and what is in none of them.

    Without `costs` there are none. A cell is empty where there is no amount: 0 is free.
    """

    costs: Mapping[str, Cost] | None
    currencies: Sequence[str] = ()

    @property
    def columns(self) -> list[Column]:
        """Return the headings."""
        if self.costs is None:
            return []
        return [*(Column(f"Cost, {name}") for name in self.currencies), Column("Without price")]

    def cells(self, names: Iterable[str]) -> list[Value]:
        """Return the cells of one or several names together."""
        if self.costs is None:
            return []
        cost = Cost.sum_of(self.costs.get(name, Cost()) for name in names)
        return cells_of(cost, self.currencies)


def cells_of(cost: Cost, currencies: Sequence[str]) -> list[Value]:
    """Return the cells of what some tokens cost."""
    amounts = [
        Money(cost.amounts[name], name) if name in cost.amounts else None for name in currencies
    ]
    return [*amounts, WithoutPrice(cost.unpriced_tokens)]


def days(figures: Figures) -> Table:
    """Return the month day by day."""
    costs = figures.costs
    beside = (
        CostColumns(costs.days, costs.currencies) if isinstance(costs, Costs) else CostColumns(None)
    )

    def row(day: Day) -> list[Value]:
        return [
            f"{day.day:%Y-%m-%d} {day.day:%a}",
            *_amounts(day, beside.cells([f"{day.day}"])),
        ]

    return Table(
        "Day by day",
        [Column("Day", is_number=False), *_amount_columns(beside)],
        [row(day) for day in figures.days],
        [["Total", *_amounts(figures.total, beside.cells(beside.costs or ()))]],
        sorted_by=0,
        descending=False,
    )


def parts(
    caption: str,
    title: str,
    items: Sequence[Part],
    beside: CostColumns,
    size: int,
    *,
    in_chart: bool = True,
) -> Table:
    """Return operations, models or tenants, each with its share, its cost and its change."""
    whole = sum(part.tokens for part in items)
    top = top_of(items, size)
    colours = len(top_of(items, SERIES_SHOWN).first) if in_chart else 0

    def row(name: Value, some: Sequence[Part]) -> list[Value]:
        tokens = sum(part.tokens for part in some)
        before = sum(part.tokens_before for part in some)
        calls = sum(part.event_count for part in some)
        return [
            name,
            tokens,
            *beside.cells(part.name for part in some),
            Share(tokens, whole),
            calls,
            before,
            Change(tokens, before),
        ]

    foot = [row("Total", items)]
    if top.others:
        foot.insert(0, row(f"{len(top.others):,} others", top.others))
    return Table(
        caption,
        [
            Column(title, is_number=False),
            Column("Tokens"),
            *beside.columns,
            Column("Share"),
            Column("Calls"),
            Column("Tokens before"),
            Column("Change"),
        ],
        [
            row(Name(part.name, place if place < colours else None), [part])
            for place, part in enumerate(top.first)
        ],
        foot,
        sorted_by=1,
    )


def series_by_day(
    caption: str, items: Sequence[Part], cells: Sequence[PartOfDay], all_days: Sequence[Day]
) -> Table:
    """Return the chart's numbers: one row per day, one column per series."""
    top = top_of(items, SERIES_SHOWN)
    places = {part.name: place for place, part in enumerate(top.first)}
    width = len(top.first) + bool(top.others)
    rows: dict[date, list[int]] = {day.day: [0] * width for day in all_days}
    for cell in cells:
        rows[cell.day][places.get(cell.name, width - 1)] += cell.tokens
    titles = [_shown(part.name) for part in top.first]
    if top.others:
        titles.append(f"{len(top.others):,} others")
    sums = [sum(column) for column in zip(*rows.values(), strict=True)]
    return Table(
        caption,
        [Column("Day", is_number=False), *(Column(title) for title in titles), Column("Total")],
        [[f"{day:%Y-%m-%d}", *row, sum(row)] for day, row in rows.items()],
        [["Total", *sums, sum(sums)]],
        sorted_by=0,
        descending=False,
    )


def kinds(costs: Costs) -> Table:
    """Return the kinds of tokens, each of which has its own price."""
    beside = CostColumns(costs.kinds, costs.currencies)
    whole = costs.total.tokens
    ordered = sorted(costs.kinds, key=lambda kind: (-costs.kinds[kind].tokens, kind))

    def row(title: str, names: Sequence[str]) -> list[Value]:
        tokens = sum(costs.kinds[name].tokens for name in names)
        return [title, tokens, *beside.cells(names), Share(tokens, whole)]

    return Table(
        "Cost by kind of token",
        [Column("Kind", is_number=False), Column("Tokens"), *beside.columns, Column("Share")],
        [row(_KINDS.get(kind, kind), [kind]) for kind in ordered],
        [row("Total", ordered)],
        sorted_by=1,
    )


def unpriced(costs: Costs) -> Table:
    """Return what has no price, by the names that a price would have."""
    top = top_of(costs.unpriced, UNPRICED_SHOWN)
    foot: list[list[Value]] = []
    if top.others:
        others = sum(row.tokens for row in top.others)
        foot.append([f"{len(top.others):,} others", "", "", "", others])
    foot.append(["Total", "", "", "", sum(row.tokens for row in costs.unpriced)])
    return Table(
        "Tokens without a price",
        [
            *(Column(title, is_number=False) for title in ("Model", "Provider", "Kind", "Tier")),
            Column("Tokens"),
        ],
        [
            [
                Name(row.model),
                Name(row.provider),
                row.token_kind,
                Name(row.service_tier),
                row.tokens,
            ]
            for row in top.first
        ],
        foot,
        sorted_by=4,
    )


def cost_by_day(
    caption: str,
    currency: str,
    top: Top[str],
    cells: Sequence[CostOfDay],
    all_days: Sequence[Day],
) -> Table:
    """Return the numbers of a chart of costs: one row per day, one column per model."""
    places = {name: place for place, name in enumerate(top.first)}
    width = len(top.first) + bool(top.others)
    rows: dict[date, list[Decimal]] = {day.day: [Decimal(0)] * width for day in all_days}
    for cell in cells:
        row_of_day, place = rows[cell.day], places.get(cell.name, width - 1)
        row_of_day[place] = exact_sum([row_of_day[place], cell.amount])
    titles = [_shown(name) for name in top.first]
    if top.others:
        titles.append(f"{len(top.others):,} others")
    sums = [exact_sum(column) for column in zip(*rows.values(), strict=True)]

    def row(title: str, amounts: Sequence[Decimal]) -> list[Value]:
        whole = exact_sum(amounts)
        return [title, *(Money(amount, currency) for amount in [*amounts, whole])]

    return Table(
        caption,
        [Column("Day", is_number=False), *(Column(title) for title in titles), Column("Total")],
        [row(f"{day:%Y-%m-%d}", amounts) for day, amounts in rows.items()],
        [row("Total", sums)],
        sorted_by=0,
        descending=False,
    )


def months(figures: Figures) -> Table:
    """Return the months with their changes, the newest first."""
    period = figures.scope.period
    costs = figures.costs
    shown = list(figures.months)
    beside = CostColumns(None)
    if isinstance(costs, Costs):
        of_shown = Cost.sum_of(costs.months.get(f"{month.month}", Cost()) for month in shown)
        beside = CostColumns(costs.months, sorted(of_shown.amounts))

    def row(month: Month, before: Month | None) -> list[Value]:
        is_partial = month.month == period.month and not period.is_complete
        return [
            f"{month.month:%Y-%m}" + (" so far" if is_partial else ""),
            *_amounts(month, beside.cells([f"{month.month}"])),
            # Do not compare an incomplete month with a whole one.
            None if before is None or is_partial else Change(month.tokens, before.tokens),
        ]

    pairs = zip(shown, [None, *shown[:-1]], strict=True)
    return Table(
        "Month against month",
        [Column("Month", is_number=False), *_amount_columns(beside), Column("Change")],
        [row(month, before) for month, before in pairs][::-1],
        sorted_by=0,
    )


def _amount_columns(beside: CostColumns) -> list[Column]:
    return [
        Column("Tokens"),
        *beside.columns,
        Column("Input"),
        Column("of it from cache"),
        Column("to cache"),
        Column("Output"),
        Column("of it reasoning"),
        Column("Calls"),
    ]


def _amounts(amount: Amount, costs: Sequence[Value]) -> tuple[Value, ...]:
    return (
        amount.tokens,
        *costs,
        amount.input_tokens,
        amount.cache_read_tokens,
        amount.cache_write_tokens,
        amount.output_tokens,
        amount.reasoning_tokens,
        amount.event_count,
    )


def agents(figures: Figures) -> Table:
    """Return which tenant used which tenant's agent."""
    top = top_of(figures.agents, AGENT_USES_SHOWN)

    def row(use: AgentUse) -> list[Value]:
        return [
            Name(use.agent),
            "another tenant" if use.requester is None else Name(use.requester),
            Name(use.payer),
            _RULES.get(use.rule, use.rule),
            use.tokens,
            use.event_count,
        ]

    def foot(title: str, tokens: int, calls: int) -> list[Value]:
        return [title, "", "", "", tokens, calls]

    def foot_of(title: str, uses: Sequence[AgentUse]) -> list[Value]:
        return foot(title, sum(use.tokens for use in uses), sum(use.event_count for use in uses))

    total = figures.total
    by_agents = Amount(
        tokens=sum(use.tokens for use in figures.agents),
        event_count=sum(use.event_count for use in figures.agents),
    )
    feet = [foot_of(f"{len(top.others):,} others", top.others)] if top.others else []
    feet += [
        foot("All agents", by_agents.tokens, by_agents.event_count),
        foot(
            "Without an agent",
            total.tokens - by_agents.tokens,
            total.event_count - by_agents.event_count,
        ),
        foot("Total", total.tokens, total.event_count),
    ]
    return Table(
        "Who used whose agent",
        [
            *(Column(title, is_number=False) for title in ("Agent", "Used by", "Paid by", "Why")),
            Column("Tokens"),
            Column("Calls"),
        ],
        [row(use) for use in top.first],
        feet,
        sorted_by=4,
    )


def _shown(name: str) -> str:
    return name or "(empty)"


_KINDS: Final = {
    "input": "Input, not cached",
    "cache_read": "Read from cache",
    "cache_write": "Written to cache",
    "cache_write_long": "Written to cache, long",
    "output": "Output",
    "reasoning": "Reasoning",
    "unsplit": "Neither input nor output",
}
_RULES: Final = {
    "agent_owner": "its owner pays",
    "unknown_agent": "nobody owned it: the caller pays",
}
