"""What usage costs, computed without dbt or SQL: event by event, in plain loops over raw."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from genai_prices.types import ModelPrice, Usage

from tests.support.oracle import Raw, Settings, attributed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.oracle import Marts, Snapshot

Row = dict[str, object]
DIGITS = 100  # more than any cost has
# How genai-prices names the price and the tokens of a kind.
UNITS = {
    "input": ("input_mtok", ("input_tokens",)),
    "cache_read": ("cache_read_mtok", ("input_tokens", "cache_read_tokens")),
    "cache_write": ("cache_write_mtok", ("input_tokens", "cache_write_tokens")),
    "cache_write_long": ("cache_write_mtok", ("input_tokens", "cache_write_tokens")),
    "output": ("output_mtok", ("output_tokens",)),
    "reasoning": ("output_mtok", ("output_tokens",)),
    "unsplit": ("input_mtok", ("input_tokens",)),
}
WHOLES = {"input_tokens": "input_mtok", "output_tokens": "output_mtok"}


@dataclass(frozen=True)
class Prices:
    """The committed rows of the tables of prices."""

    prices: list[Row]
    aliases: list[Row]
    rules: list[Row]
    assignments: list[Row]

    @classmethod
    def read(cls, connection: psycopg.Connection[tuple]) -> Prices:
        """Read all four tables."""

        def rows(table: str) -> list[Row]:
            cursor = connection.execute(f"select * from token_tracking_raw.{table}")  # type: ignore[arg-type]
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return cls(
            rows("model_prices"),
            rows("model_aliases"),
            rows("price_list_rules"),
            rows("tenant_price_lists"),
        )

    def as_of(self, snapshot: Snapshot) -> Prices:
        """Return the rows that the snapshot sees."""

        def seen(rows: list[Row]) -> list[Row]:
            return [row for row in rows if snapshot.sees(row["ingest_xid"])]  # type: ignore[arg-type]

        return Prices(*(seen(rows) for rows in vars(self).values()))


def in_force(rows: list[Row], hour: datetime, **key: object) -> Row | None:
    """Return the row of the newest instant by then, in its latest revision."""
    found = [
        row
        for row in rows
        if all(row[name] == value for name, value in key.items()) and row["valid_from"] <= hour  # type: ignore[operator]
    ]
    return max(found, key=lambda row: (row["valid_from"], row["revision"]), default=None)  # type: ignore[arg-type, return-value]


def price_of(
    prices: Prices, hour: datetime, price_list: str, name: tuple[str, str], of: Row
) -> tuple[str, Decimal] | None:
    """Return currency and amount of a kind of an event's tokens; None if no price is in force."""
    source: object = price_list
    factor = Decimal(1)
    for _ in range(3):
        for bound in sorted({row["context_over"] for row in prices.prices}, reverse=True):  # type: ignore[type-var]
            if bound and of["input_tokens"] <= bound:  # type: ignore[operator]
                continue
            row = in_force(
                prices.prices, hour, price_list=source, provider=name[0], model=name[1],
                token_kind=of["kind"], service_tier=of["tier"], context_over=bound,
            )  # fmt: skip
            if row is not None and row["amount"] is not None:
                return str(row["currency"]), row["amount"] * factor  # type: ignore[operator]
        rule = in_force(prices.rules, hour, price_list=source)
        if rule is None or rule["base_list"] is None:
            return None
        source, factor = rule["base_list"], factor * rule["factor"]  # type: ignore[operator]
    return None


@dataclass(frozen=True)
class _Billable:
    """An event with its payer's list, and the name under which it is priced."""

    labels: tuple[object, ...]  # from usage_date to model
    tier: str
    billed: str
    hour: datetime
    name: tuple[str, str]
    input_tokens: int
    kinds: dict[str, int]

    def price(self, prices: Prices, price_list: str, kind: str) -> tuple[str, Decimal] | None:
        of: Row = {"kind": kind, "tier": self.tier, "input_tokens": self.input_tokens}
        return price_of(prices, self.hour, price_list, self.name, of)


def _billable(raw: Raw, prices: Prices, settings: Settings) -> Iterator[_Billable]:
    zone = ZoneInfo(settings.billing_timezone)
    for event, payer, _, token_type, operation in attributed(raw, settings):
        occurred_at = event["occurred_at"]
        assert isinstance(occurred_at, datetime)
        day = occurred_at.astimezone(zone).date()
        hour = occurred_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        provider, model = (
            "unknown" if event[label] is None else str(event[label])
            for label in ("provider", "model")
        )
        tier = event["service_tier"] or "standard"
        alias = in_force(prices.aliases, hour, provider=provider, alias=model)
        name = (provider, model)
        if alias is not None and alias["priced_model"] is not None:
            name = (str(alias["priced_provider"]), str(alias["priced_model"]))
        assigned = in_force(prices.assignments, hour, tenant_id=payer)
        billed = str((assigned and assigned["price_list"]) or "list")
        part = {
            field: int(event[field] or 0)  # type: ignore[call-overload]
            for field in event
            if field.endswith("tokens")
        }
        kinds = {
            "input": part["input_tokens"] - part["cache_read_tokens"] - part["cache_write_tokens"],
            "cache_read": part["cache_read_tokens"],
            "cache_write": part["cache_write_tokens"] - part["cache_write_long_tokens"],
            "cache_write_long": part["cache_write_long_tokens"],
            "output": part["output_tokens"] - part["reasoning_tokens"],
            "reasoning": part["reasoning_tokens"],
            "unsplit": part["tokens"] - part["input_tokens"] - part["output_tokens"],
        }
        yield _Billable(
            (day, payer, token_type, operation, provider, model),
            str(tier), billed, hour, name, part["input_tokens"], kinds,
        )  # fmt: skip


def costs(raw: Raw, prices: Prices, settings: Settings) -> list[tuple[object, ...]]:
    """Return the rows of daily_token_cost, sorted, by genai-prices' arithmetic for each event."""
    totals: dict[tuple[object, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)
    with localcontext(prec=DIGITS):
        for event in _billable(raw, prices, settings):
            for price_list in {*settings.price_lists, event.billed}:
                for kind, tokens in event.kinds.items():
                    if not tokens:
                        continue
                    price = event.price(prices, price_list, kind)
                    row = totals[
                        *event.labels, kind, event.tier, price_list, price_list == event.billed,
                        price and price[0],
                    ]  # fmt: skip
                    row[0] += tokens
                    if price is None:
                        row[2] += tokens
                    else:
                        unit, counts = UNITS[kind]
                        usage = Usage(**dict.fromkeys(counts, tokens))
                        # It wants a price of the whole, too, of which nothing is left here.
                        of_unit = ModelPrice(**{WHOLES[counts[0]]: Decimal(1), unit: price[1]})
                        row[1] += of_unit.calc_price(usage)["total_price"]
    return sorted(((*key, *numbers) for key, numbers in totals.items()), key=repr)


def savings(raw: Raw, prices: Prices, settings: Settings) -> list[tuple[object, ...]]:
    """Return the rows of daily_cache_savings, sorted: what cached input would have cost more."""
    totals: dict[tuple[object, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 2)
    with localcontext(prec=DIGITS):
        for event in _billable(raw, prices, settings):
            tokens = event.kinds["cache_read"]
            for price_list in {*settings.price_lists, event.billed} if tokens else ():
                own, other = (
                    event.price(prices, price_list, kind) for kind in ("cache_read", "input")
                )
                known = own is not None and other is not None and own[0] == other[0]
                row = totals[
                    *event.labels, event.tier, price_list, price_list == event.billed,
                    own[0] if known else None,  # type: ignore[index]
                ]  # fmt: skip
                row[0] += tokens
                if known:
                    row[1] += tokens * (other[1] - own[1]) / 1_000_000  # type: ignore[index]
    return sorted(((*key, *numbers) for key, numbers in totals.items()), key=repr)


def count_costs(raw: Raw, prices: Prices, settings: Settings) -> Marts:
    """Return the rows of the rollups of costs, sorted."""
    days = costs(raw, prices, settings)
    months: dict[tuple[object, ...], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)
    with localcontext(prec=DIGITS):
        for day, *key, tokens, cost, unpriced in days:
            assert isinstance(day, date)
            row = months[day.replace(day=1), *key]
            for place, number in enumerate((tokens, cost, unpriced)):
                row[place] += number  # type: ignore[operator]
    return {
        "daily_token_cost": days,
        "monthly_token_cost": sorted(
            ((*key, *numbers) for key, numbers in months.items()), key=repr
        ),
    }
