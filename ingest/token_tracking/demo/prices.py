"""What the demo's usage costs: public prices, one of which changes in the middle of a month."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from ..pricing.bundled import read_bundled
from ..pricing.changes import difference
from ..pricing.price import Alias
from ..pricing.rules import STANDARD_TIER
from .usage import DAYS, MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..pricing.price import Price

CHEAPER: Final = "gpt-4o"
_FACTOR: Final = Decimal("0.5")
# The public list has the second name; the model that the demo has tuned is in no list.
_ALIAS: Final = ("claude-sonnet-4", "claude-sonnet-4-0")
_DAYS_AFTER_CHANGE: Final = 7


@dataclass(frozen=True)
class Prices:
    """The prices of the demo, and under which public name a model is priced."""

    source: str
    prices: Sequence[Price]
    alias: Alias


def change_of_price(end: date) -> date:
    """Return the last middle of a month that has at least a week of usage after it."""
    last = end - timedelta(days=_DAYS_AFTER_CHANGE)
    month = last if last.day >= 15 else last.replace(day=1) - timedelta(days=1)
    return month.replace(day=15)


def prices_of_usage(end: date) -> Prices:
    """Return the prices of the usage before `end`.

    They are those of the package genai-prices, as if its list had always been the same; one model
    costs half from the middle of a month on, which is invented.

    Raises:
        PricesError: genai-prices is not installed.

    """
    begin = datetime.combine(end - timedelta(days=DAYS + 1), time(), UTC)
    bundled = read_bundled(["openai", "anthropic"])
    names = {*MODELS, _ALIAS[1]}
    bundled.periods = {
        key: periods
        for key, periods in bundled.periods.items()
        if key.model in names and key.service_tier == STANDARD_TIER
    }
    public = [change.price for change in difference(bundled, [], begin, begin).changes]
    cheaper = [
        replace(
            price,
            valid_from=datetime.combine(change_of_price(end), time(), UTC),
            amount=price.amount * _FACTOR,
            source="demo",
            note="invented: half of the public price",
        )
        for price in public
        if price.model == CHEAPER and price.amount is not None
    ]
    alias = Alias("anthropic", _ALIAS[0], begin, "anthropic", _ALIAS[1])
    return Prices(bundled.source, [*public, *cheaper], alias)
