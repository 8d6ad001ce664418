"""Models without a price, and under which name each one may be priced."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from ..client.connection import Connection
from ..errors import PricesError
from ..responses.providers import text_of_name
from ..target import Target
from .bundled import is_installed, match
from .effective import resolved
from .rules import UNKNOWN_PROVIDER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    from .price import Alias

_UNPRICED: Final = """
    select
        provider, model, price_list, token_kind, service_tier, unpriced_tokens,
        first_used_on, last_used_on
    from {}
    where unpriced_tokens > 0
"""
_NO_MARTS: Final = (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable)
_DATE: Final = re.compile(r"[-@]20[0-9]{2}-?[01][0-9]-?[0-3][0-9]$")
_LATEST: Final = re.compile(r"[-:]latest$")
_VERSION: Final = re.compile(r"-v[0-9]+(:[0-9]+)?$")


@dataclass
class Unpriced:
    """A provider's model with tokens that have no price; `tokens` are those of the largest list."""

    provider: str
    model: str
    tokens: int
    lists: list[str]
    kinds: list[str]
    tiers: list[str]
    first_used_on: date
    last_used_on: date

    @property
    def name(self) -> str:
        """Return the name that `--accept` takes."""
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True)
class Proposal:
    """Under which name a model may be priced, and how that was found."""

    priced_provider: str
    priced_model: str
    found_by: str


@dataclass
class Suggestion:
    """A model without a price, and what may help: a proposal, or a sentence."""

    unpriced: Unpriced
    proposal: Proposal | None = None
    says: str = ""


@dataclass
class _Sums:
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict[str, int](int))
    kinds: set[str] = field(default_factory=set[str])
    tiers: set[str] = field(default_factory=set[str])
    days: list[date] = field(default_factory=list[date])


def read_unpriced(schema: str) -> list[Unpriced]:
    """Return the names in the mart `unpriced_usage`, most tokens first.

    Raises:
        PricesError: there are no marts, or the role may not read them.

    """
    target = Target.of("")
    query = sql.SQL(_UNPRICED).format(sql.Identifier(schema, "unpriced_usage"))
    sums: dict[tuple[str, str], _Sums] = defaultdict(_Sums)
    try:
        with Connection.open("") as database:
            for row in database.execute(query):
                provider, model, price_list, kind, tier, tokens, first, last = row
                one = sums[str(provider), str(model)]
                one.tokens[str(price_list)] += int(str(tokens))
                one.kinds.add(str(kind))
                one.tiers.add(str(tier))
                one.days += [day for day in (first, last) if isinstance(day, date)]
    except _NO_MARTS as error:
        message = (
            f"{target} has no {schema}.unpriced_usage: build the marts first, with dbt build or "
            "token-tracking refresh (--schema names another schema)"
        )
        raise PricesError(message) from error
    except psycopg.Error as error:
        raise PricesError(target.explain(error)) from error
    found = [
        Unpriced(
            *name,
            max(one.tokens.values()),
            sorted(one.tokens),
            sorted(one.kinds),
            sorted(one.tiers),
            min(one.days),
            max(one.days),
        )
        for name, one in sums.items()
    ]
    return sorted(found, key=lambda one: (-one.tokens, one.name))


def suggestions(
    unpriced: Sequence[Unpriced],
    priced: Collection[tuple[str, str]],
    aliases: Sequence[Alias],
    at: datetime,
) -> list[Suggestion]:
    """Return what may help each name; `priced` are the names that have prices."""
    return [_suggestion(one, priced, aliases, at) for one in unpriced]


def _suggestion(
    unpriced: Unpriced,
    priced: Collection[tuple[str, str]],
    aliases: Sequence[Alias],
    at: datetime,
) -> Suggestion:
    provider, model = resolved(aliases, unpriced.provider, unpriced.model, at)
    alias = (
        "" if (provider, model) == (unpriced.provider, unpriced.model) else f"{provider}/{model} "
    )
    if (provider, model) in priced:
        kinds, tiers, lists = map(", ".join, (unpriced.kinds, unpriced.tiers, unpriced.lists))
        says = (
            f"{alias}has prices, but the last build found none for {kinds}"
            f" (tier {tiers}, price list {lists})"
        )
        return Suggestion(unpriced, says=says)
    own = (unpriced.provider, unpriced.model)
    spelled = next((one for one in spellings(*own) if one in priced and one != own), None)
    found = match(*own) if is_installed() else None
    if found == own:
        says = f"in genai-prices: token-tracking prices import --providers {unpriced.provider}"
        return Suggestion(unpriced, says=says)
    if found is not None and found in priced:
        how = "spelling, genai-prices" if found == spelled else "genai-prices"
        return Suggestion(unpriced, Proposal(*found, how))
    if spelled is not None:
        return Suggestion(unpriced, Proposal(*spelled, "spelling"))
    if found is not None:
        says = f"no price of {found[0]}/{found[1]} is recorded yet: import it first"
        return Suggestion(unpriced, Proposal(*found, "genai-prices"), says)
    elsewhere = sorted(other for other in priced if other[1] == unpriced.model)
    if len(elsewhere) == 1:
        return Suggestion(unpriced, Proposal(*elsewhere[0], "same name at another provider"))
    return Suggestion(unpriced, says="no proposal: set its price, or record an alias")


def spellings(provider: str, model: str) -> Iterator[tuple[str, str]]:
    """Yield other names that a name may be spelled for, the closest first."""
    for place, name in _without_prefix(provider, model):
        for shorter in _without_suffix(name):
            yield place, shorter


def _without_prefix(provider: str, model: str) -> Iterator[tuple[str, str]]:
    places = [provider]
    common = text_of_name(provider)
    if common is not None and common != provider:
        places.append(common)
    for place in places:
        yield place, model
    rest = model
    while "/" in rest:
        prefix, _, rest = rest.partition("/")
        known = text_of_name(prefix)
        if known is not None:
            yield known, rest
        for place in places:
            if place != UNKNOWN_PROVIDER:
                yield place, rest


def _without_suffix(model: str) -> Iterator[str]:
    for name in dict.fromkeys((model, model.lower(), model.lower().replace("@", "-"))):
        yield name
        whole = _VERSION.sub("", name)
        for pattern in (_DATE, _LATEST):
            if pattern.search(whole):
                yield pattern.sub("", whole)
        if whole != name:
            yield whole
