"""The command `token-tracking compare`, for the weeks in which two systems run side by side."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated

import typer

from .options import FAILED, NOT_ALL_WELL, SCHEMA, SchemaOption, TableFormat, TableFormatOption

ALIKE_SHOWN = 10


def compare_command(
    daily: Annotated[
        str,
        typer.Option(help="The older daily table, as schema.table.", show_default=False),
    ],
    tenant: Annotated[str, typer.Option(help="Its column of the payer.")] = "tenant_id",
    day: Annotated[str, typer.Option(help="Its column of the day.")] = "usage_date",
    tokens: Annotated[str, typer.Option(help="Its column of tokens.")] = "tokens",
    since: Annotated[
        str | None, typer.Option(help="The first day, as 2026-03-01.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="The day after the last one, as 2026-04-01.", show_default=False),
    ] = None,
    schema: SchemaOption = SCHEMA,
    output: TableFormatOption = TableFormat.TABLE,
) -> None:
    """Compare an older daily table with the marts: show each tenant and day that differs.

    Both are in the database of libpq's variables. A missing row equals a row of 0 tokens. Rows of
    the older table without a day belong to no period: they are always included, on separate lines.

    Exit codes: 0 all equal; 1 something differs, or the two cannot be compared; 2 wrong usage; 3
    there is nothing to compare.

    token-tracking compare --daily billing.daily_usage --day date --tokens total_tokens
    """
    from dataclasses import asdict

    import psycopg
    from rich.table import Table

    from ..escapes import Escaped, escaped, spelled_out
    from ..marts.compare import OldTable, compared, look_alikes
    from .terminal import Terminal

    first, end = _day("since", since), _day("until", until)
    with psycopg.connect("") as connection:
        connection.read_only = True
        # Take a new snapshot for each statement, after its locks, whatever the role's default is.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        days = list(compared(connection, OldTable(daily, tenant, day, tokens), schema, first, end))
    terminal = Terminal()
    different = [one for one in days if one.difference]
    alike = look_alikes(days)
    taken_for_one = {tenant_id for group in alike for tenant_id in group}
    if output is TableFormat.JSON:
        for one in different:
            terminal.json({**asdict(one), "difference": one.difference}, default=_plain)
    elif different:
        table = Table("day", "tenant")
        for heading in (daily, "token_tracking", "difference"):
            table.add_column(heading, justify="right")
        for one in different:
            table.add_row(
                "no day" if one.usage_date is None else str(one.usage_date),
                "no tenant"
                if one.tenant_id is None
                else spelled_out(one.tenant_id)
                if one.tenant_id in taken_for_one
                else one.tenant_id,
                _number(one.theirs),
                _number(one.ours),
                f"{_shown(one.difference):+,}",
            )
        terminal.table(table)
    if not days:
        terminal.say("nothing to compare: neither side has a row of these days")
        raise typer.Exit(NOT_ALL_WELL)
    for group in alike[:ALIKE_SHOWN]:
        terminal.warn("these ids look alike, and are counted as different tenants:")
        for tenant_id, (theirs, ours) in group.items():
            told = f"{_shown(theirs):,} tokens in {daily}, {_shown(ours):,} in token_tracking"
            terminal.say(Escaped(f"  '{spelled_out(tenant_id)}': {escaped(told)}"))
    if len(alike) > ALIKE_SHOWN:
        terminal.warn(f"{len(alike) - ALIKE_SHOWN:,} more groups of ids look alike")
    total = sum(one.difference for one in different)
    terminal.say(
        f"{len(days) - len(different):,} of {len(days):,} tenants' days are equal"
        + (f"; the others differ by {_shown(total):+,} tokens together" if different else "")
    )
    if different:
        raise typer.Exit(FAILED)


def _number(tokens: Decimal | None) -> str:
    return "no row" if tokens is None else f"{_shown(tokens):,}"


def _shown(tokens: Decimal | int) -> Decimal | int:
    """Return whole tokens without the trailing zeros of the column's type."""
    return int(tokens) if tokens % 1 == 0 else tokens


def _plain(value: object) -> object:
    if not isinstance(value, Decimal):
        return str(value)
    shown = _shown(value)
    if isinstance(shown, int):
        return shown
    return float(shown) if shown.is_finite() else str(shown)


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        message = f"{text}: must be a day as 2026-03-01"
        raise typer.BadParameter(message, param_hint=f"--{option}") from error
