"""The public prices of genai-prices, as prices of our kinds; nothing is read from the network.

genai-prices charges tokens of a kind without a price at the price of the next wider kind. Here each
kind has a price of its own, and the note says where it is from, so that nothing has to be inferred
when tokens are rated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib import metadata
from typing import TYPE_CHECKING, Final, cast

from ..errors import PricesError
from ..responses.providers import text_of_name
from .price import PriceKey
from .rules import CONTEXT_BOUNDS, PUBLIC_LIST, STANDARD_TIER, decimals_of, number_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

PACKAGE: Final = "genai-prices"
ALL: Final = "all"
# Their names there, and the names that services record. Others are spelled alike.
_OUR_NAMES: Final = {
    "aws": ("aws.bedrock",),
    "azure": ("azure.ai.openai", "azure.ai.inference"),
    "google": ("gcp.gemini", "gcp.vertex_ai"),
    "mistral": ("mistral_ai",),
    "x-ai": ("x_ai",),
}
_THEIR_NAMES: Final = {ours: theirs for theirs, names in _OUR_NAMES.items() for ours in names}
# Those whose responses `usage_of` reads.
USUAL_PROVIDERS: Final = (
    *("anthropic", "aws", "azure", "cohere", "deepseek", "google", "groq", "mistral", "openai"),
    *("perplexity", "x-ai"),
)
# The names of prices that count for a kind, the first that a model has.
_SOURCES: Final = {
    "input": ("input_mtok",),
    "cache_read": ("cache_read_mtok", "input_mtok"),
    "cache_write": ("cache_write_mtok", "input_mtok"),
    "cache_write_long": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    "output": ("output_mtok",),
    "reasoning": ("output_reasoning_mtok", "output_mtok"),
}
_KIND_OF_SOURCE: Final = {names[0]: kind for kind, names in _SOURCES.items()}
_CONTEXTS: Final[dict[str, dict[str, str]]] = {
    STANDARD_TIER: {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
}
# Aggregators publish what a program in floating point has computed: 0.18000000000000002.
_MOST_DECIMALS: Final = 12
_DISTANT_PAST: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Period:
    """What a key costs from `start`, a time that the source names, until the next period.

    Without `start`: as far back as the source goes.
    """

    start: datetime | None
    amount: Decimal | None
    note: str | None = None


@dataclass
class LeftOut:
    """What the list has and rows of prices cannot say."""

    by_time_of_day: list[str] = field(default_factory=list[str])
    without_token_price: list[str] = field(default_factory=list[str])
    unknown_bounds: list[str] = field(default_factory=list[str])
    # Of units other than text tokens, by the name of the price: searches, audio, pages.
    units: Counter[str] = field(default_factory=Counter[str])


@dataclass
class Bundled:
    """The list: the periods of each key, in order, and what is left out."""

    source: str
    periods: dict[PriceKey, list[Period]] = field(default_factory=dict[PriceKey, list[Period]])
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def providers(self) -> list[str]:
        """Return the providers' names, as services record them."""
        return sorted({key.provider for key in self.periods})


@dataclass(frozen=True)
class _Found:
    amount: Decimal
    note: str | None


def read_bundled(wanted: Sequence[str] = ()) -> Bundled:
    """Return the prices of some providers, under either of their names; default: the usual ones.

    Raises:
        PricesError: genai-prices is not installed, or has no such provider.

    """
    source = f"{PACKAGE} {_version()}"
    bundled = Bundled(source)
    for provider in _chosen(_providers(), wanted):
        for model in provider.models:
            _add_model(bundled, provider.id, model)
    return bundled


def match(provider: str, model: str) -> tuple[str, str] | None:
    """Return what genai-prices takes a name for, as our provider and its model; None if unknown.

    Its matching is by patterns, so this is a proposal and no more.
    """
    providers = _providers()
    from genai_prices.data_snapshot import DataSnapshot

    name = _THEIR_NAMES.get(provider, provider)
    for theirs in dict.fromkeys((name, None) if name != "unknown" else (None,)):
        try:
            _, found = DataSnapshot(providers, from_auto_update=False).find_provider_model(
                model, None, theirs, None
            )
        except LookupError:
            continue
        # The model may be another provider's, whose it resells.
        owner = next(one for one in providers if any(found is other for other in one.models))
        ours = our_names(owner.id)
        return (provider if provider in ours else ours[0]), found.id
    return None


def our_names(provider: str) -> tuple[str, ...]:
    """Return the names under which services record what a provider of genai-prices counts."""
    return _OUR_NAMES.get(provider, (provider,))


def is_installed() -> bool:
    """Return whether the extra `prices` is there."""
    try:
        _version()
    except PricesError:
        return False
    return True


def _version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        message = f"{PACKAGE} is not installed: pip install 'token-tracking[prices]'"
        raise PricesError(message) from error


def _providers() -> list[Provider]:
    _version()
    # Not through its snapshot, which an update from the network may have replaced.
    from genai_prices.data import providers

    return providers


def _chosen(providers: list[Provider], wanted: Sequence[str]) -> list[Provider]:
    by_id = {provider.id: provider for provider in providers}
    if ALL in wanted:
        return providers
    chosen: dict[str, Provider] = {}
    for name in wanted or USUAL_PROVIDERS:
        label = name.strip().lower()
        theirs = next(
            (
                one
                for one in (
                    label,
                    _THEIR_NAMES.get(label),
                    _THEIR_NAMES.get(text_of_name(label) or ""),
                )
                if one in by_id
            ),
            None,
        )
        if theirs is None:
            message = (
                f"{PACKAGE} has no provider {name!r}; it has {', '.join(sorted(by_id))}; or {ALL}"
            )
            raise PricesError(message)
        chosen[theirs] = by_id[theirs]
    return list(chosen.values())


def _add_model(bundled: Bundled, provider: str, model: ModelInfo) -> None:
    left_out = bundled.left_out
    left_out.units.update(_other_units(model))
    if _depends_on_time_of_day(model):
        left_out.by_time_of_day.append(f"{provider}/{model.id}")
        return
    days = sorted(_days(model))
    starts = [None, *(datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days)]
    # Before all days, the list has its first price.
    first = starts[1] - timedelta(days=1) if len(starts) > 1 and starts[1] else _DISTANT_PAST
    found = [_prices_at(model, start or first) for start in starts]
    keys = dict.fromkeys(key for prices in found for key in prices)
    if not keys:
        left_out.without_token_price.append(f"{provider}/{model.id}")
    for kind, tier, bound in keys:
        if bound and bound not in CONTEXT_BOUNDS:
            left_out.unknown_bounds.append(f"{provider}/{model.id} over {bound:,} tokens")
            continue
        periods: list[Period] = []
        for start, prices in zip(starts, found, strict=True):
            price = prices.get((kind, tier, bound))
            amount = None if price is None else price.amount
            if not periods or periods[-1].amount != amount:
                periods.append(Period(start, amount, price.note if price else None))
        for ours in our_names(provider):
            key = PriceKey(PUBLIC_LIST, ours, model.id, kind, tier, bound)
            bundled.periods[key] = periods


def _prices_at(model: ModelInfo, at: datetime) -> dict[tuple[str, str, int], _Found]:
    """Return the amounts at a time, by kind, tier and bound."""
    found: dict[tuple[str, str, int], _Found] = {}
    for tier, context in _CONTEXTS.items():
        if tier != STANDARD_TIER and not _has_tier(model, at, context):
            continue
        prices = model.get_prices(at, context)
        for kind, names in _SOURCES.items():
            priced = [(name, _price_of(prices, name)) for name in names]
            name, price = next(((n, p) for n, p in priced if p is not None), (names[0], None))
            if price is None:
                continue
            note = None if name == names[0] else f"the price of {_KIND_OF_SOURCE[name]}"
            for bound, amount in _brackets(price):
                found[kind, tier, bound] = _rounded(amount, note)
    return found


def _brackets(price: Decimal | TieredPrices) -> Iterator[tuple[int, Decimal]]:
    if isinstance(price, Decimal):
        yield 0, price
        return
    yield 0, price.base
    for tier in price.tiers:
        yield tier.start, tier.price


def _rounded(amount: Decimal, note: str | None) -> _Found:
    if decimals_of(amount) <= _MOST_DECIMALS:
        return _Found(amount, note)
    was = f"rounded from {number_text(amount)}"
    return _Found(round(amount, _MOST_DECIMALS), f"{note}, {was}" if note else was)


def _price_of(prices: ModelPrice, name: str) -> Decimal | TieredPrices | None:
    return cast("Decimal | TieredPrices | None", vars(prices).get(name))


def _has_tier(model: ModelInfo, at: datetime, context: Mapping[str, str]) -> bool:
    return any(
        all(context.get(name) == value for name, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )


def _is_of_tier(when: Mapping[str, str]) -> bool:
    return any(
        all(context.get(name) == value for name, value in when.items())
        for context in _CONTEXTS.values()
    )


def _depends_on_time_of_day(model: ModelInfo) -> bool:
    from genai_prices.types import TimeOfDateConstraint

    return any(isinstance(one, TimeOfDateConstraint) for one in _constraints(model))


def _days(model: ModelInfo) -> set[date]:
    from genai_prices.types import StartDateConstraint

    return {one.start_date for one in _constraints(model) if isinstance(one, StartDateConstraint)}


def _constraints(model: ModelInfo) -> Iterator[object]:
    if isinstance(model.prices, list):
        for price in model.prices:
            yield price.constraint
    for variant in model.price_variants or ():
        if _is_of_tier(variant.when):
            yield variant.constraint


def _other_units(model: ModelInfo) -> set[str]:
    prices = (
        [price.prices for price in model.prices]
        if isinstance(model.prices, list)
        else [model.prices]
    )
    names = {name for one in prices for name, value in vars(one).items() if value is not None}
    return names - set(_KIND_OF_SOURCE)
