"""What the month cost, read from the cost marts: by the list that each payer pays by.

Amounts of different currencies are never added, and tokens without a price stand beside them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Final

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

    from .figures import Scope
    from .reading import Reading

_MARTS: Final = {"daily_token_cost", "monthly_token_cost"}
# More digits than any sum has: the default context would round after 28 of them.
_EXACT: Final = Context(prec=1000)


@dataclass(frozen=True)
class Cost:
    """What some tokens cost, by currency and not rounded; `unpriced_tokens` are in no amount."""

    tokens: int = 0
    unpriced_tokens: int = 0
    amounts: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])

    @classmethod
    def sum_of(cls, costs: Iterable[Cost]) -> Cost:
        """Return the sum, which has an amount in each currency."""
        tokens = unpriced = 0
        amounts: dict[str, Decimal] = defaultdict(Decimal)
        for cost in costs:
            tokens += cost.tokens
            unpriced += cost.unpriced_tokens
            for currency, amount in cost.amounts.items():
                amounts[currency] = _EXACT.add(amounts[currency], amount)
        return cls(tokens, unpriced, dict(amounts))


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """Return the sum of amounts of one currency, not rounded."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


@dataclass(frozen=True)
class CostOfDay:
    """What a model's tokens of a day cost in one currency."""

    day: date
    name: str
    currency: str
    amount: Decimal


@dataclass(frozen=True)
class Unpriced:
    """Tokens of the month that had no price in force at their time."""

    provider: str
    model: str
    token_kind: str
    service_tier: str
    tokens: int


@dataclass(frozen=True)
class Saving:
    """What tokens that were read from a cache would have cost more as uncached input."""

    currency: str
    tokens: int
    saved: Decimal


@dataclass(frozen=True)
class Costs:
    """What the month's tokens cost, by the texts of days, months, and so on."""

    total: Cost
    days: Mapping[str, Cost]
    months: Mapping[str, Cost]
    operations: Mapping[str, Cost]
    models: Mapping[str, Cost]
    tenants: Mapping[str, Cost]
    kinds: Mapping[str, Cost]
    model_days: Sequence[CostOfDay]
    unpriced: Sequence[Unpriced]
    savings: Sequence[Saving]

    @property
    def currencies(self) -> list[str]:
        """Return the currencies of the month."""
        return sorted(self.total.amounts)

    def models_in(self, currency: str) -> list[str]:
        """Return the models with a price in a currency, the most expensive first."""
        amounts: dict[str, Decimal] = {
            name: cost.amounts[currency]
            for name, cost in self.models.items()
            if currency in cost.amounts
        }
        return sorted(amounts, key=lambda name: (-amounts[name], name))

    @property
    def cached_tokens(self) -> int:
        """Return the tokens that were read from a cache."""
        return self.kinds.get("cache_read", Cost()).tokens

    @property
    def cached_tokens_of_unknown_saving(self) -> int:
        """Return those of them that lack a price, or whose input has none."""
        return self.cached_tokens - sum(saving.tokens for saving in self.savings)


@dataclass(frozen=True)
class NoCosts:
    """Why the report has no costs, as a sentence."""

    reason: str


@dataclass(frozen=True)
class _Row:
    name: str
    currency: str | None
    tokens: int
    amount: Decimal
    unpriced_tokens: int


def read_costs(reading: Reading, scope: Scope) -> Costs | NoCosts:
    """Return what the month cost, or why that cannot be told."""
    if not scope.builds.keys() >= _MARTS:
        return NoCosts(
            "The totals were built by a version that knew no costs: after `token-tracking schema "
            "apply`, `dbt build` makes them, and `token-tracking prices import --apply` records "
            "public prices."
        )
    values = scope.values

    def by(dimension: str) -> dict[str, Cost]:
        return _by_name(reading.rows("cost_by", _Row, values, dimension=dimension))

    try:
        with reading.database.transaction():  # a savepoint: the report continues without costs
            days = by("usage_date")
            return Costs(
                total=Cost.sum_of(days.values()),
                days=days,
                months=_by_name(reading.rows("cost_months", _Row, values)),
                operations=by("operation"),
                models=by("model"),
                tenants=by("tenant_id"),
                kinds=by("token_kind"),
                model_days=reading.rows("cost_days_by", CostOfDay, values, dimension="model"),
                unpriced=reading.rows("unpriced", Unpriced, values),
                savings=_savings(reading, values),
            )
    except psycopg.errors.InsufficientPrivilege:
        return NoCosts(f"The role {scope.role} may not read what tokens cost.")


def _savings(reading: Reading, values: Mapping[str, object]) -> list[Saving]:
    """Return what the cache saved; nothing where a build of chosen models left the view out."""
    try:
        with reading.database.transaction():
            return reading.rows("cache_savings", Saving, values)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable):
        return []


def _by_name(rows: Iterable[_Row]) -> dict[str, Cost]:
    found: dict[str, list[Cost]] = defaultdict(list)
    for row in rows:
        amounts = {} if row.currency is None else {row.currency: row.amount}
        found[row.name].append(Cost(row.tokens, row.unpriced_tokens, amounts))
    return {name: Cost.sum_of(costs) for name, costs in found.items()}
