"""Which prices are in force at a time: those of a list, and those that it takes from its base."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Final

from .changes import in_force
from .rules import number_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from .price import Alias, ListRule, Price, PriceKey

# Three factors of 18 decimals, of at most a billion each: nothing is rounded, as in SQL.
_EXACT: Final = Context(prec=100)
_MOST_BASES: Final = 2  # a list of a list of a list: as in macros/costs/rated_usage.sql


@dataclass(frozen=True)
class Effective:
    """A price in force under a key; `factor` is None where it is a price of the list's own."""

    key: PriceKey
    price: Price
    amount: Decimal
    factor: Decimal | None = None

    @property
    def origin(self) -> str:
        """Return where the price is from, for people."""
        source = self.price.source or ""
        if self.factor is None:
            return source
        return f"{number_text(self.factor)} x {self.price.price_list}" + (
            f" ({source})" if source else ""
        )


def effective_prices(
    prices: Iterable[Price], rules: Sequence[ListRule], price_list: str, at: datetime
) -> list[Effective]:
    """Return what counts at a time in a list, by its own prices first, then by its base's.

    A larger size of request is left out where it costs the same as the next smaller one.
    """
    by_key: dict[PriceKey, list[Price]] = defaultdict(list)
    for price in prices:
        by_key[price.key].append(price)
    # By what differs only in the size of the request: each price with the place of its list.
    sizes: dict[PriceKey, list[tuple[int, Effective]]] = defaultdict(list)
    for place, (base, factor) in enumerate(_sources(rules, price_list, at)):
        for key, some in by_key.items():
            price = in_force(some, at) if key.price_list == base else None
            if price is not None and price.amount is not None:
                shown = key._replace(price_list=price_list)
                amount = price.amount if factor is None else _EXACT.multiply(price.amount, factor)
                one = Effective(shown, price, amount, factor)
                sizes[shown._replace(context_over=0)].append((place, one))
    found: list[Effective] = []
    for some in sizes.values():
        last: Effective | None = None
        for bound in sorted({one.key.context_over for _, one in some}):
            met = [(place, one) for place, one in some if one.key.context_over <= bound]
            _, counts = min(met, key=lambda pair: (pair[0], -pair[1].key.context_over))
            if counts is not last:
                found.append(counts)
            last = counts
    return found


def resolved(aliases: Iterable[Alias], provider: str, model: str, at: datetime) -> tuple[str, str]:
    """Return under which provider and name a model is priced at a time."""
    begun = [
        alias
        for alias in aliases
        if (alias.provider, alias.alias) == (provider, model) and alias.valid_from <= at
    ]
    last = max(begun, key=lambda alias: alias.valid_from, default=None)
    if last is None or last.priced_provider is None or last.priced_model is None:
        return provider, model
    return last.priced_provider, last.priced_model


def rule_in_force(rules: Iterable[ListRule], price_list: str, at: datetime) -> ListRule | None:
    """Return the rule of a list at a time."""
    begun = [rule for rule in rules if rule.price_list == price_list and rule.valid_from <= at]
    last = max(begun, key=lambda rule: rule.valid_from, default=None)
    return None if last is None or last.base_list is None else last


def _sources(
    rules: Sequence[ListRule], price_list: str, at: datetime
) -> list[tuple[str, Decimal | None]]:
    """Return the lists that a list takes its prices from, each with its factor."""
    sources: list[tuple[str, Decimal | None]] = [(price_list, None)]
    factor = Decimal(1)
    for _ in range(_MOST_BASES):
        rule = rule_in_force(rules, sources[-1][0], at)
        if rule is None or rule.base_list is None or rule.factor is None:
            break
        factor = _EXACT.multiply(factor, rule.factor)
        sources.append((rule.base_list, factor))
    return sources
