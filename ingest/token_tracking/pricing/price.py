"""A row of `model_prices`, as it is recorded, read and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .rules import PUBLIC_LIST, STANDARD_TIER

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal


class PriceKey(NamedTuple):
    """What a price is of; of one key, a price counts until the next one."""

    price_list: str
    provider: str
    model: str
    token_kind: str
    service_tier: str = STANDARD_TIER
    context_over: int = 0


@dataclass(frozen=True)
class Price:
    """One price: a million tokens cost `amount` from `valid_from` on; None is no price."""

    provider: str
    model: str
    token_kind: str
    valid_from: datetime
    amount: Decimal | None
    price_list: str = PUBLIC_LIST
    service_tier: str = STANDARD_TIER
    context_over: int = 0
    currency: str = "USD"
    source: str | None = None
    note: str | None = None

    @property
    def key(self) -> PriceKey:
        """Return what the price is of."""
        return PriceKey(
            self.price_list,
            self.provider,
            self.model,
            self.token_kind,
            self.service_tier,
            self.context_over,
        )

    @property
    def value(self) -> tuple[Decimal | None, str | None]:
        """Return what a correction changes; two prices that end are equal in any currency."""
        return (None, None) if self.amount is None else (self.amount, self.currency)


@dataclass(frozen=True)
class Alias:
    """One row of `model_aliases`: under which name a model is priced; None is under its own."""

    provider: str
    alias: str
    valid_from: datetime
    priced_provider: str | None
    priced_model: str | None


@dataclass(frozen=True)
class ListRule:
    """One row of `price_list_rules`: prices of a list are a factor of those of its base."""

    price_list: str
    valid_from: datetime
    base_list: str | None
    factor: Decimal | None
