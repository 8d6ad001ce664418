"""The tables that the demo shows at its end."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    Rows = Sequence[Mapping[str, object]]

_BAR: Final = 24  # characters
_HUNDREDTH: Final = Decimal("0.01")
_WHAT_COUNTS: Final = {
    "refused": "not counted; kept with its reason",
    "contradiction": "the first payload counts; the other one is kept",
    "voided": "recorded, in no total",
    "unknown label": "counted as unknown, until an alias says what it means",
    "unknown agent": "counted; who called pays, until an owner is recorded",
    "arrived late": "counted on the day of the call",
}


def last_week(rows: Rows) -> Table:
    """Return the daily totals."""
    table = _table("Tokens a day, the last week")
    table.add_column("day")
    _add_numbers(table, "llm", "embedding", "all tokens", "USD", "no price", "calls")
    table.add_column("")
    most = max((_int(row, "tokens") for row in rows), default=0)
    for row in rows:
        table.add_row(
            f"{cast('date', row['usage_date']):%a %Y-%m-%d}",
            *(_number(row, name) for name in ("llm_tokens", "embedding_tokens", "tokens")),
            _amount(row, "amount"),
            _number(row, "unpriced_tokens"),
            _number(row, "event_count"),
            _bar(_int(row, "tokens"), most),
        )
    return table


def months(rows: Rows) -> Table:
    """Return the monthly totals by payer."""
    table = _table("Tokens a month, by who pays")
    table.add_column("month")
    table.add_column("tenant")
    _add_numbers(table, "input", "from cache", "output", "all tokens", "USD", "no price", "calls")
    table.add_column("")
    most = max((_int(row, "tokens") for row in rows), default=0)
    before: object = None
    for row in rows:
        month = row["usage_month"]
        if before not in {None, month}:
            table.add_section()
        table.add_row(
            "" if month == before else f"{cast('date', month):%Y-%m}",
            str(row["tenant_id"]),
            *(
                _number(row, name)
                for name in ("input_tokens", "cache_read_tokens", "output_tokens", "tokens")
            ),
            _amount(row, "amount"),
            _number(row, "unpriced_tokens"),
            _number(row, "event_count"),
            _bar(_int(row, "tokens"), most),
        )
        before = month
    return table


def costs(rows: Rows, cheaper: str, change_date: date) -> Table:
    """Return what each model cost, and in the weeks before and after the change of a price."""
    table = _table(f"What it cost in US dollars: {cheaper} at half the price from {change_date} on")
    table.add_column("model")
    _add_numbers(table, "all tokens", "no price", "USD", "the week before", "the week after")
    for row in rows:
        is_priced = _int(row, "unpriced_tokens") < _int(row, "tokens")
        table.add_row(
            str(row["model"]),
            _number(row, "tokens"),
            _number(row, "unpriced_tokens"),
            # What has no price does not cost 0.
            *(
                _amount(row, name) if is_priced else ""
                for name in ("amount", "week_before", "week_after")
            ),
        )
    table.add_section()
    table.add_row(
        "all",
        *(f"{sum(_int(row, name) for row in rows):,}" for name in ("tokens", "unpriced_tokens")),
        *(
            f"{sum(cast('Decimal', row[name]) for row in rows):,.2f}"
            for name in ("amount", "week_before", "week_after")
        ),
    )
    return table


def shared_agents(rows: Rows) -> Table:
    """Return which tenant used which tenant's agent."""
    table = _table("Who used whose agent: its owner at that time pays")
    for name in ("agent", "used by", "paid by", "from", "to"):
        table.add_column(name)
    _add_numbers(table, "tokens", "calls")
    before: object = None
    for row in rows:
        agent = row["agent_id"]
        if before not in {None, agent}:
            table.add_section()
        nobody = row["attribution_rule"] == "unknown_agent"
        table.add_row(
            "" if agent == before else str(agent),
            str(row["requester_tenant_id"]),
            f"{row['tenant_id']}{' (nobody owns it)' if nobody else ''}",
            *(f"{cast('date', row[name]):%Y-%m-%d}" for name in ("first_used_on", "last_used_on")),
            _number(row, "tokens"),
            _number(row, "event_count"),
        )
        before = agent
    return table


def doubtful(rows: Rows) -> Table:
    """Return the payloads that were refused, or that count but are doubtful."""
    table = _table("Refused or doubtful: nothing vanishes")
    table.add_column("what")
    table.add_column("why")
    _add_numbers(table, "calls")
    table.add_column("what counts")
    for row in rows:
        kind = str(row["kind"])
        table.add_row(kind, str(row["detail"]), _number(row, "event_count"), _WHAT_COUNTS[kind])
    return table


def proof(rows: Rows) -> str:
    """Return the sentence that compares the totals."""
    [row] = rows
    names = ("raw_tokens", "daily_tokens", "monthly_tokens")
    raw, daily, monthly = (_int(row, name) for name in names)
    if raw == daily == monthly:
        return f"The totals close: raw less voids = sum of days = sum of months = {raw:,} tokens."
    return f"The totals differ: raw {raw:,}, days {daily:,}, months {monthly:,} tokens."


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _add_numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right")


def _number(row: Mapping[str, object], name: str) -> str:
    return f"{_int(row, name):,}"


def _amount(row: Mapping[str, object], name: str) -> str:
    amount = cast("Decimal", row[name] or 0)
    return "<0.01" if 0 < amount < _HUNDREDTH else f"{amount:,.2f}"


def _int(row: Mapping[str, object], name: str) -> int:
    return int(cast("int", row[name] or 0))


def _bar(value: int, most: int) -> str:
    return "█" * round(_BAR * value / most) if most else ""
