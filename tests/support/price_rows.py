"""Rows for the tables of prices, as the procedures take them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

Row = dict[str, object]
# A procedure and what it is to record.
Recording = tuple[str, list[Row]]

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
KINDS = ("input", "cache_read", "cache_write", "cache_write_long", "output", "reasoning", "unsplit")


def at(hours: int) -> str:
    """Return the instant so many hours after START."""
    return (START + hours * HOUR).isoformat()


def price(
    amount: object, kind: str = "input", model: str = "gpt-4o", hours: int = 0, **more: object
) -> Row:
    """Return a price of OpenAI's."""
    return {
        "provider": "openai", "model": model, "token_kind": kind, "amount": amount,
        "valid_from": at(hours), **more,
    }  # fmt: skip


def of_input(amount: object, model: str = "gpt-4o", hours: int = 0, **more: object) -> list[Row]:
    """Return prices of all that an event's input may be."""
    return [price(amount, kind, model, hours, **more) for kind in KINDS[:4]]


def alias(
    name: str, priced: tuple[str | None, str | None], hours: int = 0, provider: str = "openai"
) -> Row:
    """Return the name under which a model is priced."""
    return {
        "provider": provider, "alias": name, "valid_from": at(hours),
        "priced_provider": priced[0], "priced_model": priced[1],
    }  # fmt: skip


def rule(price_list: str, base: str | None, factor: float | None, hours: int = 0) -> Row:
    """Return a rule that makes a list a factor of another one."""
    return {
        "price_list": price_list, "base_list": base, "factor": factor, "valid_from": at(hours),
    }  # fmt: skip


def assignment(tenant: str, price_list: str | None, hours: int = 0) -> Row:
    """Return the list that a tenant pays by."""
    return {"tenant_id": tenant, "valid_from": at(hours), "price_list": price_list}


def some_rows(rng: random.Random, hours: Sequence[int], tenants: Sequence[str]) -> Recording:
    """Make prices, aliases, rules or assignments, of a few hours, so that they are corrected, too.

    Prices are those of gpt-4o and x, in the lists named list, c and d.
    """
    hour = rng.choice(hours)
    what = rng.randrange(5)
    if what < 2:
        amount = rng.choice([2.5, 0.08333333333333334, 0, None, 10])
        kinds = KINDS if rng.random() < 0.5 else (rng.choice(KINDS),)
        more: Row = {
            "price_list": rng.choice(["list", "list", "c"]),
            "context_over": rng.choice([0, 0, 272_000]),
            "service_tier": rng.choice(["standard", "standard", "batch"]),
            "currency": rng.choice(["USD", "USD", "EUR"]),
        }
        model = rng.choice(["gpt-4o", "x"])
        return "record_model_prices", [price(amount, kind, model, hour, **more) for kind in kinds]
    if what == 2:
        priced = rng.choice([("openai", "x"), ("openai", "gpt-4o"), (None, None)])
        provider, name = rng.choice(
            [("openai", "alias"), ("openai", "gpt-4o"), ("unknown", "unknown")]
        )
        return "record_model_aliases", [alias(name, priced, hour, provider)]
    if what == 3:
        base, factor = rng.choice([("list", 1.2), ("list", 0), ("c", 0.8), (None, None)])
        price_list = "d" if base == "c" else rng.choice("cd")
        return "record_price_list_rules", [rule(price_list, base, factor, hour)]
    price_list = rng.choice(["c", "d", "list", None])
    return "record_tenant_price_lists", [assignment(rng.choice(tenants), price_list, hour)]
