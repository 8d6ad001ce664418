"""The command `token-tracking load`: loads usage from files, or undoes such a load."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .options import INTERRUPTED, NOT_ALL_WELL

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..loading.load import Load
    from ..loading.sender import FileReport
    from ..loading.source import Source
    from ..loading.undo import Undo
    from .terminal import Terminal


def load_command(
    files: Annotated[
        list[str],
        typer.Argument(help="CSV or JSON lines; - is standard input.", show_default=False),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="The CSV column of each field: occurred_at=TIMESTAMP,input_tokens=ContextTokens. "
            "Columns named like a field need not be listed.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The program that wrote the files: litellm (its table LiteLLM_SpendLogs), "
            "openai-batch (a batch's output file), langfuse (its observations) or otel (OTLP JSON "
            "lines). --set and --columns override what it says; --columns may name a member of its "
            "JSON, such as tenant_id=metadata.customer.",
            show_default=False,
        ),
    ] = None,
    constants: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Fields with one value for all rows: tenant_id=acme,model=gpt-4o.",
            show_default=False,
        ),
    ] = None,
    timezone: Annotated[
        str,
        typer.Option(
            help="Time zone of times without UTC offset, such as Europe/Berlin. A local time that "
            "occurs twice is the first of the two, one that is skipped is an hour later."
        ),
    ] = "UTC",
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv or jsonl, if the suffix does not tell.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Name of the files' origin: equal rows of two sources count twice."),
    ] = "",
    nulls: Annotated[
        list[str] | None,
        typer.Option(
            "--null",
            help="Text that means an empty cell, such as NULL or \\N; may be repeated. Without it, "
            "NULL, None, nan, N/A and \\N are refused as ids, models and labels; with it, any "
            "other text is a name.",
            show_default=False,
        ),
    ] = None,
    complete: Annotated[
        bool | None,
        typer.Option(
            "--complete/--growing",
            help="Whether a last line without a line end is a row, or is still being written. "
            "Without either option it is not read, and the exit code is 3.",
            show_default=False,
        ),
    ] = None,
    alike: Annotated[
        str | None,
        typer.Option(
            help="What to do with a row that is recorded under another key, with its tenant, time "
            "and tokens: stop, skip or record. Default: stop; with --source, record.",
            show_default=False,
        ),
    ] = None,
    undo: Annotated[
        bool,
        typer.Option(
            "--undo", help="Undo a load of these files with the same options: void its events."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --undo: only say what would be voided.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --undo: do not ask.")] = False,
    reason: Annotated[
        str, typer.Option(help="With --undo: why, as kept in usage_voids.", show_default=False)
    ] = "",
) -> None:
    """Record usage from files, each row once: a file can be loaded again, or as it grows.

    A row without idempotency_key is identified by its values and, among equal rows, its ordinal.
    Rows that are not valid usage events are kept in usage_event_rejections; the others are
    recorded.

    Exit codes: 0 all rows are recorded; 1 failed, or stopped at a row that is recorded under
    another key: the reported rows are recorded; 3 done, but rows were refused, contradict recorded
    ones or are recorded with another time, or a last line has no end; 130 interrupted, the reported
    rows are recorded. With --undo: 3 if rows are recorded differently than these options say, or a
    last line has no end.
    """
    from ..loading.cells import columns_of, constants_of, zone_of
    from ..loading.formats.known import export_of
    from ..loading.load import Load
    from ..loading.plan import Plan
    from ..loading.recorded import Alike
    from ..loading.source import Format, Source
    from ..target import Target
    from .terminal import Terminal

    terminal = Terminal()
    if file_format not in {None, *Format}:
        message = f"{file_format!r} is neither csv nor jsonl"
        raise typer.BadParameter(message, param_hint="--format")
    if alike not in {None, *Alike}:
        message = f"{alike!r} is not one of stop, skip and record"
        raise typer.BadParameter(message, param_hint="--alike")
    if not undo and (dry_run or yes or reason):
        message = "--dry-run, --yes and --reason belong to --undo"
        raise typer.BadParameter(message)
    zone = zone_of(timezone)
    plan = Plan(
        columns_of(columns or []),
        constants_of(constants or [], zone),
        zone,
        source,
        tuple(nulls or ()),
        is_whole=complete is True,
        export=export_of(export) if export else None,
    )
    sources = [Source.of(path, Format(file_format) if file_format else None) for path in files]
    Target.of()  # report an invalid connection string before reading any file
    if undo:
        from ..loading.undo import Undo

        undone = Undo(plan)
        _undo(undone, sources, terminal, reason, is_trial=dry_run, is_sure=yes)
        if undone.unread and complete is None:
            raise typer.Exit(NOT_ALL_WELL)
        return
    load = Load(plan, alike=Alike(alike) if alike else None)
    try:
        _run_with_progress("loading", load.run, lambda: _rows(load), sources, terminal)
    except KeyboardInterrupt:
        _print_load(load, terminal)
        terminal.fail("interrupted: what is counted above is kept, the same command adds the rest")
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        if any(file.rows for file in load.files):
            _print_load(load, terminal)
            terminal.say("What is counted above is kept; the same command adds the rest.")
        raise
    _print_load(load, terminal)
    if load.has_problems or (load.has_unread and complete is None):
        raise typer.Exit(NOT_ALL_WELL)


def _undo(
    undo: Undo,
    sources: list[Source],
    terminal: Terminal,
    reason: str,
    *,
    is_trial: bool,
    is_sure: bool,
) -> None:
    if not (is_trial or is_sure) and not (
        sys.stdin.isatty() and all(source.can_be_read_again for source in sources)
    ):
        message = "--undo asks first: say --yes, or --dry-run to see what it would void"
        raise typer.BadParameter(message)
    reason = reason or f"load --undo of {', '.join(source.name for source in sources)}"[:1000]

    def run(*, is_trial: bool) -> None:
        try:
            _run_with_progress(
                "looking" if is_trial else "voiding",
                lambda files, tell: undo.run(files, reason, tell, is_trial=is_trial),
                lambda: sum(sum(file) for file in undo.files.values()),
                sources,
                terminal,
            )
        except KeyboardInterrupt:
            _print_undo(undo, terminal, is_trial=is_trial)
            terminal.fail(
                "interrupted: what is counted above is done, the same command does the rest"
            )
            raise typer.Exit(INTERRUPTED) from None
        except Exception:
            if any(any(file) for file in undo.files.values()):
                _print_undo(undo, terminal, is_trial=is_trial)
                terminal.say("What is counted above is done; the same command does the rest.")
            raise

    if not is_sure:
        run(is_trial=True)
        _print_undo(undo, terminal, is_trial=True)
        if is_trial:
            return
        count = sum(file.voided for file in undo.files.values())
        if count == 0:
            return
        typer.confirm(f"Void the events of {count:,} rows for ever?", abort=True, err=True)
    run(is_trial=False)
    _print_undo(undo, terminal, is_trial=False)
    if any(file.other for file in undo.files.values()):
        raise typer.Exit(NOT_ALL_WELL)


def _print_undo(undo: Undo, terminal: Terminal, *, is_trial: bool) -> None:
    from rich.table import Table

    table = Table("file")
    for name in ("would be voided" if is_trial else "voided", "voided before", "other", "missing"):
        table.add_column(name, justify="right")
    for name, file in undo.files.items():
        table.add_row(name, *(f"{count:,}" for count in file))
    terminal.table(table)
    files = undo.files.values()
    if any(file.other for file in files):
        terminal.warn(
            "other: recorded with this key, but with another time or payload than these files and "
            "options say; they stay. --undo needs the options of the load that it takes back"
        )
    for name, line in undo.unread.items():
        terminal.warn(
            f"{name}, line {line}: the last line has no line end, or an open quote: it is not "
            "read. What a load with --complete recorded of it stays; --undo --complete takes "
            "that back too (--growing: no load has read it)"
        )
    if not is_trial and any(file.voided for file in files):
        terminal.say(
            "What is voided stays so. To record rows with these tenants and keys again, as after "
            "another --timezone, name a new --source, and keep it for later loads of the file."
        )


def _rows(load: Load) -> int:
    return sum(file.rows for file in load.files)


def _run_with_progress(
    doing: str,
    run: Callable[[list[Source], Callable[[int], object]], None],
    rows: Callable[[], int],
    sources: list[Source],
    terminal: Terminal,
) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    sizes = [source.size for source in sources]
    known = [size for size in sizes if size is not None]
    with Progress(
        TextColumn(doing),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        console=terminal.err,
        transient=True,
        disable=not terminal.err.is_terminal,
    ) as progress:
        total = sum(known) if len(known) == len(sizes) else None
        task = progress.add_task(doing, total=total, rows=0)
        run(sources, lambda size: progress.update(task, advance=size, rows=rows()))


def _print_load(load: Load, terminal: Terminal) -> None:
    from rich.table import Table

    table = Table("file")
    for name in ("rows", "recorded", "already known", "conflicts", "refused"):
        table.add_column(name, justify="right")
    for file in load.files:
        counts = (file.rows, file.recorded, file.known, file.conflicts, file.refused)
        table.add_row(file.name, *(f"{count:,}" for count in counts))
    if len(load.files) > 1:
        table.add_section()
        sums = (
            sum(counts)
            for counts in zip(
                *((f.rows, f.recorded, f.known, f.conflicts, f.refused) for f in load.files),
                strict=True,
            )
        )
        table.add_row("all", *(f"{count:,}" for count in sums))
    terminal.table(table)
    for file in load.files:
        for note in file.notes:
            terminal.say(f"{file.name}: {note}")
        if file.sent_again:
            terminal.warn(
                f"{file.name}: the connection was lost; {file.sent_again:,} rows were sent again, "
                "those that had arrived before count as already known"
            )
        _warn_of(file, terminal)
        for problem in file.problems:
            terminal.warn(f"{problem.name}, line {problem.line}: {problem.kind}: {problem.reason}")
        more = file.conflicts + file.refused - len(file.problems)
        if more > 0:
            terminal.warn(
                f"{file.name}: {more:,} more; all are in token_tracking_raw.usage_event_rejections "
                "and usage_event_conflicts"
            )


def _warn_of(file: FileReport, terminal: Terminal) -> None:
    """Warn of rows that are right by their keys and may be wrong nevertheless."""
    if file.unread is not None:
        terminal.warn(
            f"{file.name}, line {file.unread}: the last line has no line end, or an open quote: "
            "from here on it is not read yet; it will be when the file has grown, or with "
            "--complete (--growing: that is as it should be)"
        )
    if file.other_times:
        terminal.warn(
            f"{file.name}: {file.other_times:,} rows are recorded with another time, which stays "
            f"({file.first_other_time}); --undo with the options of that load takes it back"
        )
    if file.voided:
        terminal.warn(
            f"{file.name}: {file.voided:,} rows are recorded and voided, so they count nowhere; to "
            "record them again, as after --undo, name a new --source"
        )
    if file.alike:
        terminal.warn(
            f"{file.name}: {file.alike:,} rows were recorded under other keys before, with their "
            "tenant, time and tokens"
        )
