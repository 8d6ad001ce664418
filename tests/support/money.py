"""What the questions about money must answer, computed from raw events and prices, without SQL."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

from tests.support.cost_oracle import Prices, costs, savings
from tests.support.oracle import Raw, Settings, attributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psycopg

Line = tuple[object, ...]

# Two currencies, a factor from the middle of a month on, and kinds without a price.
RULES = [
    {"price_list": "partner", "base_list": "list", "factor": 1.2, "valid_from": "2026-02-01T00:00Z"}
]
PRICES = [
    {
        "price_list": "europe", "provider": provider, "model": model, "token_kind": kind,
        "currency": currency, "amount": amount, "valid_from": "2025-12-01T00:00Z",
    }
    for provider, model, kind, currency, amount in (
        ("openai", "gpt-4o", "input", "EUR", 2.4),
        ("openai", "gpt-4o", "cache_read", "EUR", 1.2),
        ("openai", "gpt-4o", "output", "EUR", 9.5),
        ("anthropic", "claude-sonnet-4-0", "cache_read", "EUR", 0.3),
        ("openai", "gpt-4o-mini", "input", "USD", 0.2),
        ("openai", "gpt-4o-mini", "output", "USD", 0.7),
    )
]  # fmt: skip
ASSIGNMENTS = [
    {"tenant_id": tenant, "price_list": price_list, "valid_from": since}
    for tenant, price_list, since in (
        ("atlas-bank", "partner", "2026-02-10T12:00Z"),
        ("nordlicht-logistik", "europe", "2025-12-01T00:00Z"),
    )
]


class Cost(NamedTuple):
    """A row of daily_token_cost."""

    usage_date: date
    tenant_id: str
    token_type: str
    operation: str
    provider: str
    model: str
    token_kind: str
    service_tier: str
    price_list: str
    is_billed: bool
    currency: str | None
    tokens: int
    cost: Decimal
    unpriced_tokens: int

    @property
    def month(self) -> date:
        return self.usage_date.replace(day=1)


@dataclass(frozen=True)
class Ledger:
    """What was used, and the prices."""

    raw: Raw
    prices: Prices

    @classmethod
    def read(cls, connection: psycopg.Connection[tuple]) -> Ledger:
        """Read raw events and prices."""
        return cls(Raw.read(connection), Prices.read(connection))

    @cached_property
    def rows(self) -> list[Cost]:
        return [Cost(*row) for row in costs(self.raw, self.prices, Settings())]  # type: ignore[arg-type]

    @cached_property
    def newest(self) -> date:
        return max(row.usage_date for row in self.rows)

    @property
    def this_month(self) -> date:
        return self.newest.replace(day=1)

    @property
    def last_month(self) -> date:
        return (self.this_month - timedelta(days=1)).replace(day=1)

    @property
    def billed(self) -> list[Cost]:
        return [row for row in self.rows if row.is_billed]


def rounded(amount: Decimal) -> Decimal:
    """Round like PostgreSQL: half away from zero."""
    return amount.quantize(Decimal("0.0001"), ROUND_HALF_UP)


def grouped(
    rows: Iterable[Cost], key: Callable[[Cost], tuple[object, ...]]
) -> dict[tuple[object, ...], tuple[int, Decimal]]:
    """Add up tokens and cost by a key, and sort it: what has no currency comes last."""
    totals: dict[tuple[object, ...], tuple[int, Decimal]] = {}
    for row in rows:
        tokens, cost = totals.get(key(row), (0, Decimal(0)))
        totals[key(row)] = tokens + row.tokens, cost + row.cost
    return dict(sorted(totals.items(), key=lambda item: [part or "~" for part in item[0]]))  # type: ignore[misc]


def of_currency(currency: object, amount: Decimal) -> Decimal | None:
    return None if currency is None else rounded(amount)


def costs_by_tenant(ledger: Ledger) -> list[Line]:
    this_month = [row for row in ledger.billed if row.month == ledger.this_month]
    return [
        (tenant, currency or "no price", tokens, of_currency(currency, cost))
        for (tenant, currency), (tokens, cost) in grouped(
            this_month, lambda row: (row.tenant_id, row.currency)
        ).items()
    ]


def a_month(ledger: Ledger) -> list[Line]:
    mine = [
        row
        for row in ledger.billed
        if row.tenant_id == "nordlicht-logistik" and row.month == ledger.this_month
    ]
    return [
        (model, kind, currency or "no price", tokens, of_currency(currency, cost))
        for (model, kind, currency), (tokens, cost) in grouped(
            mine, lambda row: (row.model, row.token_kind, row.currency)
        ).items()
    ]


def this_answer(ledger: Ledger) -> list[Line]:
    counted = [event for event, *_ in attributed(ledger.raw, Settings())]
    newest = max(
        (event for event in counted if event["conversation_id"]),
        key=lambda event: event["occurred_at"],  # type: ignore[arg-type, return-value]
    )
    names = ("tenant_id", "conversation_id")
    lines: list[Line] = []
    for event in sorted(counted, key=lambda event: str(event["occurred_at"])):
        if all(event[name] == newest[name] for name in names):
            alone = replace(ledger, raw=replace(ledger.raw, events=[event]))
            lines += [
                (
                    event["idempotency_key"], row.tenant_id, row.model, row.token_kind,
                    row.currency or "no price", row.tokens, row.cost if row.currency else None,
                )
                for row in sorted(alone.billed, key=lambda row: row.token_kind)
            ]  # fmt: skip
    return lines


def without_price(ledger: Ledger) -> list[Line]:
    all_tokens = sum(row.tokens for row in ledger.billed)
    found: dict[Line, list[Cost]] = defaultdict(list)
    for row in ledger.billed:
        if row.unpriced_tokens:
            labels = row.price_list, row.provider, row.model, row.token_kind, row.service_tier
            found[labels].append(row)
    lines = [
        (
            *labels,
            (tokens := sum(row.unpriced_tokens for row in rows)),
            (Decimal(100) * tokens / all_tokens).quantize(Decimal("0.1"), ROUND_HALF_UP),
            len({row.tenant_id for row in rows}),
            min(row.usage_date for row in rows),
            max(row.usage_date for row in rows),
        )
        for labels, rows in found.items()
    ]
    return sorted(lines, key=lambda line: (-cast("int", line[5]), line[:5]))


def cache_savings(ledger: Ledger) -> list[Line]:
    totals: dict[tuple[str, str], tuple[int, Decimal]] = {}
    for row in savings(ledger.raw, ledger.prices, Settings()):
        day, tenant, *_, is_billed, currency, tokens, saved = row
        if is_billed and cast("date", day) >= ledger.this_month:
            key = str(tenant), str(currency or "not known")
            before = totals.get(key, (0, Decimal(0)))
            totals[key] = before[0] + cast("int", tokens), before[1] + cast("Decimal", saved)
    return [
        (*key, tokens, None if key[1] == "not known" else rounded(saved))
        for key, (tokens, saved) in sorted(totals.items())
    ]


def dearest(ledger: Ledger) -> list[Line]:
    listed = [
        row for row in ledger.rows if row.price_list == "list" and row.month == ledger.this_month
    ]
    lines = [
        (
            provider, model, currency or "no price", tokens, of_currency(currency, cost),
            of_currency(currency, 1_000_000 * cost / tokens),
        )
        for (provider, model, currency), (tokens, cost) in grouped(
            listed, lambda row: (row.provider, row.model, row.currency)
        ).items()
    ]  # fmt: skip
    return sorted(lines, key=lambda line: (line[2], -(line[5] or 0)))


def usage_or_prices(ledger: Ledger) -> list[Line]:
    def key(row: Cost) -> tuple[object, ...]:
        return (
            row.tenant_id, row.provider, row.model, row.token_kind, row.service_tier, row.currency
        )  # fmt: skip

    before, now = (
        grouped((row for row in ledger.billed if row.month == month), key)
        for month in (ledger.last_month, ledger.this_month)
    )
    totals: dict[tuple[str, str], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 5)
    for line in {*before, *now}:
        (tokens_before, cost_before), (tokens, cost) = (
            months.get(line, (0, Decimal(0))) for months in (before, now)
        )
        # This month's tokens, each at the mean price of now less that of before.
        by_price = (
            tokens * (cost / tokens - cost_before / tokens_before)
            if tokens and tokens_before
            else Decimal(0)
        )
        total = totals[str(line[0]), str(line[-1] or "no price")]
        for place, number in enumerate((tokens_before, tokens, cost_before, cost, by_price)):
            total[place] += number
    return [
        (
            tenant, currency, *numbers[:2],
            *(
                None if currency == "no price" else rounded(amount)
                for amount in (*numbers[2:4], numbers[3] - numbers[2] - numbers[4], numbers[4])
            ),
        )
        for (tenant, currency), numbers in sorted(totals.items())
    ]  # fmt: skip


def other_prices(ledger: Ledger) -> list[Line]:
    amounts = {"input": 2, "cache_read": Decimal("0.5"), "output": 8}
    mine = [
        row
        for row in ledger.rows
        if row.price_list == "list" and row.model == "gpt-4o" and row.month == ledger.last_month
    ]
    return [
        (
            "gpt-4o", kind, currency or "no price", tokens, of_currency(currency, cost),
            "USD", rounded(tokens * amounts[str(kind)] / Decimal(1_000_000)),
        )
        for (kind, currency), (tokens, cost) in grouped(
            mine, lambda row: (row.token_kind, row.currency)
        ).items()
    ]  # fmt: skip


def margins(ledger: Ledger) -> list[Line]:
    usage: dict[Line, list[Cost]] = defaultdict(list)
    for row in ledger.rows:
        if row.month == ledger.this_month:
            usage[row[:8]].append(row)
    totals: dict[tuple[str, str], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)
    for rows in usage.values():
        billed = [row for row in rows if row.is_billed]
        listed = [row for row in rows if row.price_list == "list"]
        currencies = {row.currency for row in [*billed, *listed]}
        is_known = len(currencies) == 1 and None not in currencies
        currency = str(currencies.pop()) if is_known else "not comparable"
        total = totals[rows[0].tenant_id, currency]
        total[0] += sum(row.tokens for row in billed)
        total[1] += sum(row.cost for row in billed)
        total[2] += sum(row.cost for row in listed)
    return [
        (
            *key, tokens,
            *(
                None if key[1] == "not comparable" else rounded(amount)
                for amount in (billed, at_list, billed - at_list)
            ),
        )
        for key, (tokens, billed, at_list) in sorted(totals.items())
    ]  # fmt: skip


def expected_costs(ledger: Ledger) -> list[Line]:
    def key(row: Cost) -> tuple[object, ...]:
        return (row.tenant_id, row.currency)

    week = [ledger.newest - timedelta(days=number) for number in range(1, 8)]
    so_far = grouped((row for row in ledger.billed if row.month == ledger.this_month), key)
    of_week = grouped((row for row in ledger.billed if row.usage_date in week), key)
    nothing = 0, Decimal(0)
    next_month = (ledger.this_month + timedelta(days=31)).replace(day=1)
    days_left = (next_month - ledger.newest).days - 1
    return [
        (
            tenant, currency or "no price", tokens, of_currency(currency, cost),
            of_currency(currency, a_day := of_week.get((tenant, currency), nothing)[1] / 7),
            days_left, of_currency(currency, cost + days_left * a_day),
        )
        for (tenant, currency), (tokens, cost) in so_far.items()
    ]  # fmt: skip


def next_build(built: Ledger, now: Ledger) -> list[Line]:
    """Return the months that differ between what was built and what is true now."""

    def key(row: Cost) -> tuple[object, ...]:
        return (str(row.month), row.tenant_id, row.currency)

    before, after = (grouped(ledger.billed, key) for ledger in (built, now))
    nothing = 0, Decimal(0)
    return [
        (
            date.fromisoformat(str(line[0])), line[1], line[2] or "no price",
            old[0], new[0], of_currency(line[2], old[1]), of_currency(line[2], new[1]),
        )
        for line in sorted({*before, *after}, key=lambda line: [part or "~" for part in line])  # type: ignore[misc]
        if (old := before.get(line, nothing)) != (new := after.get(line, nothing))
    ]  # fmt: skip


# By the numbers of the questions; the tenth one asks after something has changed.
ANSWERS: list[Callable[[Ledger], list[Line]]] = [
    a_month,
    this_answer,
    without_price,
    cache_savings,
    dearest,
    usage_or_prices,
    other_prices,
    margins,
    expected_costs,
]
