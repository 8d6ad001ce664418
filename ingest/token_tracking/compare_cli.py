"""The command `token-tracking compare`: for the weeks in which two systems count side by side."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

import typer

DIFFERENT = 1
NOTHING_TO_COMPARE = 3


class Format(StrEnum):
    """How differences are printed."""

    TABLE = "table"
    JSON = "json"


def compare_command(
    daily: Annotated[
        str,
        typer.Option(help="The older daily table, as schema.table.", show_default=False),
    ],
    tenant: Annotated[str, typer.Option(help="Its column of who pays.")] = "tenant_id",
    day: Annotated[str, typer.Option(help="Its column of the day.")] = "usage_date",
    tokens: Annotated[str, typer.Option(help="Its column of tokens.")] = "tokens",
    since: Annotated[
        str | None, typer.Option(help="The first day, as 2026-03-01.", show_default=False)
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="The day after the last one, as 2026-04-01.", show_default=False),
    ] = None,
    schema: Annotated[
        str, typer.Option(help="The schema of the marts.", envvar="DBT_SCHEMA")
    ] = "token_tracking",
    output: Annotated[Format, typer.Option("--format", help="For people, or for programs.")] = (
        Format.TABLE
    ),
) -> None:
    """Compare an older daily table with ours: each tenant and day with other tokens.

    Both are in the database of libpq's variables. Exit codes: 0 all equal, 1 something differs, 3
    there is nothing to compare.

    token-tracking compare --daily billing.daily_usage --day date --tokens total_tokens
    """
    import json
    from dataclasses import asdict

    import psycopg
    from rich.table import Table

    from .compare import OldTable, compared
    from .terminal import Terminal

    first, end = _day("since", since), _day("until", until)
    with psycopg.connect("") as connection:
        connection.read_only = True
        days = list(compared(connection, OldTable(daily, tenant, day, tokens), schema, first, end))
    terminal = Terminal()
    different = [one for one in days if one.theirs != one.ours]
    if output is Format.JSON:
        for one in different:
            terminal.result(
                json.dumps({**asdict(one), "difference": one.difference}, default=_plain)
            )
    elif different:
        table = Table("day", "tenant")
        for heading in (daily, "token_tracking", "difference"):
            table.add_column(heading, justify="right")
        for one in different:
            table.add_row(
                str(one.usage_date),
                one.tenant_id,
                _number(one.theirs),
                _number(one.ours),
                f"{_shown(one.difference):+,}",
            )
        terminal.out.print(table)
    if not days:
        terminal.say("nothing to compare: neither side has a row of these days")
        raise typer.Exit(NOTHING_TO_COMPARE)
    total = sum(one.difference for one in different)
    terminal.say(
        f"{len(days) - len(different):,} of {len(days):,} tenants' days are equal"
        + (f"; the others differ by {_shown(total):+,} tokens together" if different else "")
    )
    if different:
        raise typer.Exit(DIFFERENT)


def _number(tokens: Decimal | None) -> str:
    return "no row" if tokens is None else f"{_shown(tokens):,}"


def _shown(tokens: Decimal | int) -> Decimal | int:
    """Return whole tokens without the zeros of the column's type."""
    return int(tokens) if tokens % 1 == 0 else tokens


def _plain(value: object) -> object:
    if not isinstance(value, Decimal):
        return str(value)
    shown = _shown(value)
    return shown if isinstance(shown, int) else float(shown)


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        message = f"{text}: must be a day as 2026-03-01"
        raise typer.BadParameter(message, param_hint=f"--{option}") from error
