"""The recorded prices of a database: reads them, and records rows through the procedures."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from ..client.connection import Connection
from ..errors import PricesError
from ..target import Target
from .price import Alias, ListRule, Price
from .rules import Subject, to_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from datetime import datetime
    from typing import Self

T = TypeVar("T")

# Of each instant the highest revision.
_PRICES: Final = """
    select distinct on (
        price_list, provider, model, token_kind, service_tier, context_over, valid_from
    )
        price_list, provider, model, token_kind, service_tier, context_over, valid_from,
        currency, amount, source, note
    from token_tracking_raw.model_prices
    where %(providers)s::text[] is null or provider = any(%(providers)s)
    order by
        price_list, provider, model, token_kind, service_tier, context_over, valid_from,
        revision desc
"""
_ALIASES: Final = """
    select distinct on (provider, alias, valid_from)
        provider, alias, valid_from, priced_provider, priced_model
    from token_tracking_raw.model_aliases
    order by provider, alias, valid_from, revision desc
"""
_RULES: Final = """
    select distinct on (price_list, valid_from) price_list, valid_from, base_list, factor
    from token_tracking_raw.price_list_rules
    order by price_list, valid_from, revision desc
"""
_FIRST_HOUR: Final = "select token_tracking_raw.first_usage_hour()"
_PROCEDURES: Final[dict[Subject, str]] = {
    "model_prices": "record_model_prices",
    "model_aliases": "record_model_aliases",
    "price_list_rules": "record_price_list_rules",
    "tenant_price_lists": "record_tenant_price_lists",
}
_RECORD: Final = "select recorded, known, rejected, problems from {}(%s::json)"
_NO_SCHEMA: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
)
_SLICE: Final = 500


@dataclass(frozen=True)
class Recorded:
    """How many rows were recorded, and how many were recorded before."""

    recorded: int = 0
    known: int = 0


class _UndoError(Exception):
    """Ends a transaction that was a trial."""


@dataclass(frozen=True)
class PriceBook:
    """The four tables of prices of one database, over one connection."""

    database: Connection

    @classmethod
    @contextmanager
    def open(cls) -> Generator[Self]:
        """Connect as services do: TOKEN_TRACKING_DSN overrides libpq's variables.

        Raises:
            PricesError: the database cannot be reached, the role may not do this, or the schema is
                older than the tables of prices.

        """
        target = Target.of()
        try:
            with Connection.open() as database:
                yield cls(database)
        except psycopg.Error as error:
            raise PricesError(_explained(target, error)) from error

    def prices(self, providers: Sequence[str] | None = None) -> list[Price]:
        """Return all prices, or those of some providers; each key's in the order of their times."""
        given = None if providers is None else list(providers)
        return self._rows(Price, _PRICES, {"providers": given})

    def aliases(self) -> list[Alias]:
        """Return all aliases, each name's in the order of their times."""
        return self._rows(Alias, _ALIASES)

    def rules(self) -> list[ListRule]:
        """Return all rules of lists, each list's in the order of their times."""
        return self._rows(ListRule, _RULES)

    def first_hour(self) -> datetime | None:
        """Return the hour of the first recorded event, if there is one."""
        row = self.database.execute(_FIRST_HOUR).fetchone()
        return cast("datetime | None", row[0] if row else None)

    def record(
        self,
        subject: Subject,
        rows: Sequence[Mapping[str, object]],
        tell: Callable[[int], object] = int,
        *,
        is_trial: bool = False,
    ) -> Recorded:
        """Record all rows or, if one is refused or it is a trial, none; call `tell` with counts.

        Raises:
            InvalidPriceError: a row breaks a rule.
            PricesError: the procedure refused a row.

        """
        texts = [to_wire(subject, row) for row in rows]
        query = sql.SQL(_RECORD).format(sql.Identifier("token_tracking_raw", _PROCEDURES[subject]))
        done = Recorded()
        try:
            with self.database.transaction():
                for start in range(0, len(texts), _SLICE):
                    some = texts[start : start + _SLICE]
                    answer = self.database.execute(query, (f"[{','.join(some)}]",)).fetchone()
                    recorded, known, rejected, problems = cast(
                        "tuple[int, int, int, list[dict[str, object]]]", answer
                    )
                    if rejected:
                        message = (
                            f"{subject}: refused, and nothing recorded: {problems[0]['reason']}"
                        )
                        raise PricesError(message)
                    done = Recorded(done.recorded + recorded, done.known + known)
                    tell(len(some))
                if is_trial:
                    raise _UndoError
        except _UndoError:
            pass
        return done

    def _rows(
        self, kind: type[T], query: LiteralString, values: Mapping[str, object] | None = None
    ) -> list[T]:
        with self.database.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(query, values).fetchall()


def fields_of(price: Price) -> dict[str, object]:
    """Return a price as an object that the procedure records."""
    given = cast("dict[str, object]", vars(price))
    kept = {name: value for name, value in given.items() if value is not None}
    return {**kept, "amount": price.amount}


def _explained(target: Target, error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            f"{target} refused: {error.diag.message_primary}. Prices are kept by members of the "
            "role token_tracking_biller, or of the schema's owner: see docs/roles.md"
        )
    if isinstance(error, _NO_SCHEMA):
        return (
            f"{target} has no token_tracking_raw schema, or an older one without prices: run "
            "token-tracking schema apply"
        )
    return target.explain(error)
