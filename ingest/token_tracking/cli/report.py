"""The command `token-tracking report`: one month's usage as one HTML file."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from .options import SCHEMA, SchemaOption


def report_command(
    out: Annotated[Path, typer.Option(help="The HTML file to write.", show_default=False)],
    month: Annotated[
        str | None,
        typer.Option(
            help="The month, such as 2026-03; default: the latest with usage.", show_default=False
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Only what this tenant pays for, without any other tenant's name.",
            show_default=False,
        ),
    ] = None,
    schema: SchemaOption = SCHEMA,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Output of `token-tracking validate --format json`, to include in the report.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a month's usage and cost to one HTML file that needs no network: charts, tables, proof.

    The figures come from the marts in the database of libpq's variables, all in one snapshot. Days
    and months are those of the billing time zone. Costs are by the list that each payer pays by;
    tokens without a price stand beside them. A role that may read the marts is sufficient; the
    report says which raw data the role may not read.

    token-tracking report --out usage.html --month 2026-03
    """
    import psycopg

    from ..errors import ReportError
    from ..target import Target, differing_databases
    from .terminal import Terminal

    terminal = Terminal()
    chosen = None if month is None else _first_day(month)
    try:
        from ..report import page
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'token-tracking[report]'"
        raise ReportError(message) from error
    from ..report.figures import builds_of, read_figures
    from ..report.reading import Reading
    from ..report.trust import checks
    from ..report.validation import Validation

    target = Target.of("")
    if warning := differing_databases():
        terminal.warn(warning)
    validated = None if validation is None else Validation.read(validation)
    if validated is not None and not validated.is_of(target):
        terminal.warn(f"the validation is of {validated.database}, the report of {target}")
    try:
        with Reading.of(schema) as reading:
            builds = builds_of(reading, schema)
            figures = read_figures(reading, builds, chosen, tenant)
            found = [] if figures is None else checks(reading, figures, validated)
    except psycopg.Error as error:
        raise ReportError(target.explain(error)) from error
    html = (
        page.empty_page_of(builds["daily_token_usage"])
        if figures is None
        else page.page_of(figures, found)
    )
    out.write_text(html, encoding="utf-8")
    what = "nothing yet" if figures is None else f"{figures.scope.period.month:%B %Y}"
    terminal.result(f"{out}: {what}, {len(html.encode()) / 1024:,.0f} KiB ({target})")


def _first_day(month: str) -> date:
    try:
        return datetime.strptime(month, "%Y-%m").date()  # noqa: DTZ007  # a month has no zone
    except ValueError as error:
        message = f"{month!r} is not a month; write it as 2026-03"
        raise typer.BadParameter(message, param_hint="--month") from error
