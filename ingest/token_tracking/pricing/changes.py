"""What to record so that the prices in force become those of a list, without a false past."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .price import Price, PriceKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from .bundled import Bundled, Period


@dataclass(frozen=True)
class Change:
    """A price to record, and the one in force at its time so far."""

    price: Price
    before: Price | None


@dataclass
class Difference:
    """The changes, and the keys that differ but have a price that somebody else has set."""

    changes: list[Change] = field(default_factory=list[Change])
    kept: list[PriceKey] = field(default_factory=list[PriceKey])


def difference(
    bundled: Bundled, recorded: Iterable[Price], since: datetime, now_hour: datetime
) -> Difference:
    """Compare a list with the recorded prices.

    A price with a date in the list counts from that date. One without counts from `since` where
    nothing is recorded yet; where something is, it is what the list says today, and counts from
    `now_hour`: the past keeps its prices. A key with a price from elsewhere is left alone.
    """
    known: dict[PriceKey, list[Price]] = defaultdict(list)
    for price in recorded:
        known[price.key].append(price)
    found = Difference()
    for key, periods in _with_ended(bundled, known).items():
        prices = known.get(key, [])
        changes = _changes_of(key, periods, prices, since, now_hour, bundled.source)
        if any(not _is_from(price, bundled.source) for price in prices):
            if changes:
                found.kept.append(key)
        else:
            found.changes += changes
    return found


def in_force(prices: Sequence[Price], at: datetime) -> Price | None:
    """Return the price of one key at a time; None if there is none, or it has ended."""
    begun = [price for price in prices if price.valid_from <= at]
    last = max(begun, key=lambda price: price.valid_from, default=None)
    return None if last is None or last.amount is None else last


def _is_from(price: Price, source: str) -> bool:
    """Return whether a price is from any version of a source."""
    return (price.source or "").partition(" ")[0] == source.partition(" ")[0]


def _with_ended(
    bundled: Bundled, known: Mapping[PriceKey, Sequence[Price]]
) -> dict[PriceKey, list[Period]]:
    """Return the list's periods, and for a key that its model has no longer one without price."""
    from .bundled import Period

    models = {(key.price_list, key.provider, key.model) for key in bundled.periods}
    ended = {
        key: [Period(None, None)]
        for key in known
        if key not in bundled.periods and (key.price_list, key.provider, key.model) in models
    }
    return {**bundled.periods, **ended}


def _changes_of(
    key: PriceKey,
    periods: Sequence[Period],
    recorded: Sequence[Price],
    since: datetime,
    now_hour: datetime,
    source: str,
) -> list[Change]:
    changes: list[Change] = []
    after = {price.valid_from: price for price in recorded}

    def wants(period: Period, start: datetime) -> None:
        price = Price(
            key.provider,
            key.model,
            key.token_kind,
            start,
            period.amount,
            key.price_list,
            key.service_tier,
            key.context_over,
            source=source,
            note=period.note,
        )
        before = in_force(list(after.values()), start)
        if (before.value if before else (None, None)) != price.value:
            changes.append(Change(price, before))
            after[start] = price

    for period, later in zip(periods, [*periods[1:], None], strict=True):
        end = None if later is None else later.start
        if period.start is not None:
            wants(period, period.start)
            # What an older list without this date has put into the period.
            for start in sorted(after):
                if start > period.start and (end is None or start < end):
                    wants(period, start)
            continue
        first = min(after, default=None)
        was_priced = first is not None and first <= now_hour
        # An earlier price without a date is known only if it is still the same one.
        is_known = (
            first is None
            or not was_priced
            or after[first].amount == period.amount
            or (end is not None and first >= end)
        )
        if is_known and (first is None or since < first) and (end is None or since < end):
            wants(period, since)
        if was_priced and (end is None or now_hour < end):
            wants(period, now_hour)
    return changes
