"""The command `token-tracking validate`: Great Expectations over raw events and marts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import FAILED, NOT_ALL_WELL, SCHEMA, SchemaOption, TableFormat, TableFormatOption

if TYPE_CHECKING:
    from ..validation.report import Finding, Report
    from .terminal import Terminal


def validate_command(
    out: Annotated[
        Path, typer.Option(help="Folder for the Data Docs; replaces those of an earlier run.")
    ] = Path(".token-tracking/data-docs"),
    output: TableFormatOption = TableFormat.TABLE,
    schema: SchemaOption = SCHEMA,
) -> None:
    """Check raw events and marts independently of dbt, with Great Expectations.

    It reads one snapshot of the database of libpq's variables, and needs only USAGE on both schemas
    and SELECT on their tables; if the group roles are set up, run it as a member of
    token_tracking_analyst that may also read token_tracking_raw and label_aliases, or of
    token_tracking_transformer. Services and builds can continue meanwhile.

    Exit codes: 0 everything holds except for warnings; 1 something does not hold, or cannot be
    checked; 3 there is nothing to check: no events, or no totals of them.
    """
    from ..errors import NothingToCheckError
    from ..target import differing_databases
    from .terminal import Terminal

    terminal = Terminal()
    if warning := differing_databases():
        terminal.warn(warning)
    try:
        report = _run_with_progress(out, schema, terminal)
    except NothingToCheckError as error:
        terminal.fail(str(error))
        raise typer.Exit(NOT_ALL_WELL) from None
    if output is TableFormat.JSON:
        terminal.json(report.as_json(), indent=2)
    else:
        _print_report(report, terminal)
    if not report.success:
        raise typer.Exit(FAILED)


def _run_with_progress(out: Path, schema: str, terminal: Terminal) -> Report:
    from ..validation.checkpoint import validate

    with terminal.steps() as progress:
        task = progress.add_task("validating", total=None)
        return validate(
            out,
            schema=schema,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            on_wait=lambda: progress.update(task, description="waiting for the end of a dbt build"),
        )


def _print_report(report: Report, terminal: Terminal) -> None:
    terminal.table(report.summary())
    for suite, finding in report.unsuccessful():
        _print_finding(suite, finding, terminal)
    checked = sum(len(suite.findings) for suite in report.suites)
    wrong = report.unsuccessful()
    failed = sum(finding.fails for _, finding in wrong)
    terminal.result(
        f"{checked - len(wrong)} of {checked} expectations hold, {failed} fail, "
        f"{len(wrong) - failed} warn: {report.database}, totals as of "
        f"{report.as_of.isoformat(' ', 'seconds')}"
    )
    terminal.say(f"Data Docs: {report.docs / 'index.html'}")


def _print_finding(suite: str, finding: Finding, terminal: Terminal) -> None:
    from ..validation.report import rows_table

    said = "fails" if finding.fails else "warns"
    if finding.problem is not None:
        terminal.result("", f"{suite}: {finding.name} was not checked: {finding.problem}")
        return
    count = "1 row" if finding.row_count == 1 else f"{finding.row_count:,} rows"
    terminal.result("", f"{suite}: {finding.name} {said}, {count}", finding.otherwise)
    terminal.table(rows_table(finding))
    if finding.row_count > len(finding.rows):
        terminal.result(f"... and {finding.row_count - len(finding.rows):,} more")
