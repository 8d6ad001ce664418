"""The command line `token-tracking`: each command imports only what it needs."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .compare_cli import compare_command
from .errors import TokenTrackingError
from .escapes import escaped
from .refresh_cli import refresh_command
from .report_cli import report_command
from .schema_name import schema_name
from .spool_cli import spool_app
from .validate_cli import validate_command

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .demo.demo import Demo, Story
    from .loading.load import Load
    from .loading.sender import FileReport
    from .loading.source import Source
    from .loading.undo import Undo
    from .terminal import Terminal
    from .warehouse import Warehouse

FAILED = 1
LOADED_WITH_PROBLEMS = 3
INTERRUPTED = 130
FOLDER = Path(".token-tracking")
DATABASE = "token_tracking"


class Commands(TyperGroup):
    """All commands; what they say of a wrong use can show an argument, such as a file's name."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as typer's
        with _escaped_complaints():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        with _escaped_complaints():
            return super().invoke(ctx)


@contextmanager
def _escaped_complaints() -> Generator[None]:
    try:
        yield
    except Exception as error:
        # The class is not among those that typer exports.
        said = vars(error).get("message")
        if hasattr(error, "format_message") and isinstance(said, str):
            vars(error)["message"] = escaped(said, keep="\\")
        raise


app = typer.Typer(
    cls=Commands,
    name="token-tracking",
    help="Exact token metering: services record usage events, dbt computes all totals.\n\n"
    "The database is the one of libpq's variables (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE "
    "...); TOKEN_TRACKING_DSN overrides them for `load`, `schema` and `spool`. "
    "`token-tracking demo` needs none: it brings a server of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
schema_app = typer.Typer(no_args_is_help=True, help="The raw schema that events are recorded in.")
db_app = typer.Typer(
    no_args_is_help=True, help="The embedded PostgreSQL server, to try things without another one."
)
app.add_typer(schema_app, name="schema")
app.add_typer(spool_app, name="spool")
app.add_typer(db_app, name="db")
app.command("compare")(compare_command)
app.command("refresh")(refresh_command)
app.command("report")(report_command)
app.command("validate")(validate_command)

FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where the embedded server keeps everything.")
]
DatabaseOption = Annotated[str, typer.Option("--database", help="Name of the database.")]


def main() -> None:
    """Run the command line; whatever fails is one sentence and a non-zero exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the table's lines, or a name
    try:
        app()
    except TokenTrackingError as error:
        _fail(str(error), *getattr(error, "__notes__", ()))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  # told below
        if _was_interrupted(error):
            sys.exit(INTERRUPTED)
        import psycopg

        if not isinstance(error, psycopg.Error):
            # A fault of ours, told in full; but the text of an error can hold somebody's data.
            import traceback

            _fail("a fault in token-tracking", *traceback.format_exc().split("\n"))
        from .target import Target

        _fail(Target.of().explain(error))


def _was_interrupted(error: BaseException) -> bool:
    """Say whether it is of Ctrl-C, of which some libraries make another error as they load."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _fail(sentence: str, *more: str) -> NoReturn:
    from .terminal import Terminal

    Terminal().fail(sentence, *more)
    sys.exit(FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        from .terminal import Terminal

        try:
            Terminal().result(f"token-tracking {version('token-tracking')}")
        except PackageNotFoundError:
            Terminal().result("token-tracking, not installed")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that belong to no command."""


@schema_app.command("apply")
def schema_apply(
    roles: Annotated[
        bool, typer.Option("--roles", help="Make the group roles, too; see docs/roles.md.")
    ] = False,
    role_prefix: Annotated[
        str,
        typer.Option(
            envvar="TOKEN_TRACKING_ROLE_PREFIX",
            help="What the names begin with of the roles owner, writer, transformer, analyst and "
            "tenant_reader. dbt reads the variable.",
        ),
    ] = "token_tracking_",
    warehouse: Annotated[
        str,
        typer.Option(
            envvar="DBT_SCHEMA", callback=schema_name, help="The schema that dbt builds in."
        ),
    ] = "token_tracking",
) -> None:
    """Create the raw schema, or bring an older one to this version. Doing it again is harmless.

    With --roles it makes five roles that nobody can log in as, gives each the rights that it needs,
    and takes every right in the raw schema from all others, also what was granted by name: it says
    from whom. It needs no superuser: CREATEROLE and CREATE on the database are enough.
    """
    from .database import Database
    from .raw.roles import Roles
    from .raw.schema import apply_schema
    from .target import Target
    from .terminal import Terminal

    target = Target.of()
    wanted = Roles(role_prefix, warehouse)
    taken_from: tuple[str, ...] = ()
    with Database.open() as database:
        if roles:
            applied = wanted.apply(database)
            change, taken_from = applied.schema, applied.taken_from
        else:
            change = apply_schema(database)
    done = (
        f"version {change.after}, as before"
        if change.before == change.after
        else f"version {change.after}, created"
        if change.before == 0
        else f"version {change.after}, upgraded from {change.before}"
    )
    Terminal().result(f"token_tracking_raw: {done} ({target})")
    if roles:
        Terminal().result(f"roles: {', '.join(wanted.names.values())}")
    if taken_from:
        Terminal().warn(f"rights in token_tracking_raw were taken from {', '.join(taken_from)}")


@app.command("load")
def load_command(
    files: Annotated[
        list[str],
        typer.Argument(help="CSV or JSON lines; - is standard input.", show_default=False),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="The CSV column of each field: occurred_at=TIMESTAMP,input_tokens=ContextTokens. "
            "Columns named like a field need no mention.",
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
            help="Time zone of times without UTC offset, as Europe/Berlin. A time that the clocks "
            "show twice is the first of the two, one that they skip is an hour later."
        ),
    ] = "UTC",
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv or jsonl, where the suffix does not say.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Name of where the files come from: equal rows of two sources are two."),
    ] = "",
    nulls: Annotated[
        list[str] | None,
        typer.Option(
            "--null",
            help="Text of an empty cell, as NULL or \\N; may be given more than once. Without it, "
            "NULL, None, nan, N/A and \\N are refused as ids, models and labels; with it, any "
            "other text is a name.",
            show_default=False,
        ),
    ] = None,
    complete: Annotated[
        bool | None,
        typer.Option(
            "--complete/--growing",
            help="Whether a last line without line end is a row, or just not written yet. Without "
            "either it is not read, and the exit code is 3.",
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
            "--undo", help="Take a load of these files, with the same options, out of all totals."
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
    """Record usage from files, each row once: load a file again, or as it grows, at any time.

    A row without idempotency_key is known by its values and, among equal rows, its ordinal. Rows
    that cannot be usage events are kept in usage_event_rejections, and the others are recorded.

    Exit codes: 0 all rows are in; 1 failed, or stopped at a row that is recorded under another key:
    what was reported is in; 3 done, but rows were refused, contradict recorded ones, are recorded
    with another time, or the last line has no end; 130 interrupted, what was reported is in. With
    --undo: 3 is that rows are recorded in another way than these options say, or a last line has no
    end.
    """
    from .loading.cells import columns_of, constants_of, zone_of
    from .loading.load import Load
    from .loading.plan import Plan
    from .loading.recorded import Alike
    from .loading.source import Format, Source
    from .target import Target
    from .terminal import Terminal

    terminal = Terminal()
    if file_format not in {None, *Format}:
        message = f"{file_format!r} is neither csv nor jsonl"
        raise typer.BadParameter(message, param_hint="--format")
    if alike not in {None, *Alike}:
        message = f"{alike!r} is none of stop, skip and record"
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
    )
    sources = [Source.of(path, Format(file_format) if file_format else None) for path in files]
    Target.of()  # a broken connection string is said before anything is read
    if undo:
        from .loading.undo import Undo

        undone = Undo(plan)
        _undo(undone, sources, terminal, reason, is_trial=dry_run, is_sure=yes)
        if undone.unread and complete is None:
            raise typer.Exit(LOADED_WITH_PROBLEMS)
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
        raise typer.Exit(LOADED_WITH_PROBLEMS)


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
        raise typer.Exit(LOADED_WITH_PROBLEMS)


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
    """Tell what is right by the keys and may be wrong even so."""
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


@db_app.command("start")
def db_start(folder: FolderOption = FOLDER, database: DatabaseOption = DATABASE) -> None:
    """Start the server and make the database, where that was not done before; print its URL."""
    from .embedded import create_database, forget_other_databases, server_in
    from .terminal import Terminal

    terminal = Terminal()
    forget_other_databases()
    server = server_in(folder)
    server.start()
    if create_database(server, database):
        terminal.say(f"made the database {database}; its raw schema comes with: schema apply")
    terminal.say(f"PostgreSQL runs in {folder}; to stop it: token-tracking db stop")
    terminal.result(server.url(database))


@db_app.command("stop")
def db_stop(folder: FolderOption = FOLDER) -> None:
    """Stop the server; its databases stay."""
    from .embedded import server_in
    from .terminal import Terminal

    was_running = server_in(folder).stop()
    Terminal().say(f"stopped PostgreSQL in {folder}" if was_running else f"none runs in {folder}")


@db_app.command("url")
def db_url(
    folder: FolderOption = FOLDER,
    database: DatabaseOption = DATABASE,
    env: Annotated[
        bool, typer.Option("--env", help="Print shell commands that set libpq's variables.")
    ] = False,
) -> None:
    r"""Print the URL of the running server's database, for psql or TOKEN_TRACKING_DSN.

    For dbt and everything else: eval "$({ours} db url --env)"
    """
    import shlex

    from .embedded import server_in
    from .terminal import Terminal

    terminal = Terminal()
    server = server_in(folder)
    if env:
        for name, value in server.environment(database).items():
            terminal.result(f"export {name}={shlex.quote(value)}")
    else:
        terminal.result(server.url(database))


@app.command("demo")
def demo_command(
    folder: FolderOption = FOLDER,
    size: Annotated[float, typer.Option(hidden=True, min=0.001, max=100)] = 1.0,
) -> None:
    """See the whole story on an embedded server: from calls to daily and monthly totals.

    The first run sends ninety days of usage of a platform that does not exist, and builds the
    totals. Later runs only show them. It needs no database, and touches none that you have.
    """
    import time

    from .demo.demo import Demo
    from .embedded import forget_other_databases, server_in
    from .terminal import Terminal

    terminal = Terminal()
    started = time.monotonic()
    if ignored := forget_other_databases():
        terminal.warn(f"not used, the demo has a server of its own: {', '.join(ignored)}")
    server = server_in(folder)
    try:
        with terminal.err.status("starting PostgreSQL"):
            server.start()
            demo = Demo(server, folder / "demo")
            warehouse = demo.warehouse()
            story = demo.prepare(size=size)
        _send_usage(demo, story, terminal)
        _build_totals(demo, warehouse, terminal)
        _show_totals(demo, story, terminal)
    except KeyboardInterrupt:
        terminal.fail("interrupted: what is there stays, and token-tracking demo goes on from it")
        raise typer.Exit(INTERRUPTED) from None
    _show_way_on(demo, warehouse, folder, terminal)
    terminal.say(f"Done in {time.monotonic() - started:.0f} s.")


def _send_usage(demo: Demo, story: Story, terminal: Terminal) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if story.is_sent:
        terminal.say(
            f"The ninety days before {story.end_date} are all there since an earlier run: "
            "nothing is added."
        )
        return
    with Progress(
        TextColumn("calling track_token_usage"),
        BarColumn(),
        TextColumn("{task.fields[calls]:,} calls"),
        TimeElapsedColumn(),
        console=terminal.err,
        disable=not terminal.err.is_terminal,
    ) as progress:
        task = progress.add_task("", calls=0)
        calls = 0

        def advance(more: int, days: int) -> None:
            nonlocal calls
            calls += more
            progress.update(task, advance=1, total=days, calls=calls)

        sent = demo.send(story, advance)
    terminal.say(
        f"{sent.recorded:,} calls of the ninety days before {story.end_date} recorded; "
        f"{sent.known:,} came again with a known key and count once; "
        f"{sent.contradictions} contradicted their key, {sent.refused} were refused."
    )


def _build_totals(demo: Demo, warehouse: Warehouse, terminal: Terminal) -> None:
    with terminal.steps() as progress:
        task = progress.add_task("dbt build", total=None)
        nodes = 0

        def advance(done: int, total: int) -> None:
            nonlocal nodes
            nodes = total
            progress.update(task, completed=done, total=total)

        was_built = demo.build(warehouse, advance)
    if was_built:
        terminal.say(f"dbt build: {nodes} models, seeds and tests are green.")
    else:
        terminal.say("dbt has built its totals of them already.")


def _show_totals(demo: Demo, story: Story, terminal: Terminal) -> None:
    from .demo import tables as demo_tables

    terminal.table(demo_tables.last_week(demo.rows("last_week", {"end_date": story.end_date})))
    terminal.table(demo_tables.months(demo.rows("months")))
    terminal.table(demo_tables.shared_agents(demo.rows("shared_agents")))
    terminal.table(demo_tables.doubtful(demo.rows("doubtful")))
    terminal.result(demo_tables.proof(demo.rows("proof")))


def _show_way_on(demo: Demo, warehouse: Warehouse, folder: Path, terminal: Terminal) -> None:
    from .server import embedded_bin_dir

    option = "" if folder == FOLDER else f" --folder {folder}"
    project = warehouse.project
    ours, dbt = (_typed(name) for name in ("token-tracking", "dbt"))
    terminal.result(
        "",
        f"The database {demo.database!r} runs in {folder}. To look further:",
        "",
        f'  {embedded_bin_dir() / "psql"} "{demo.url}"',
        "",
        "    select * from token_tracking.monthly_token_usage order by usage_month, tokens desc;",
        "    select * from token_tracking.usage_events where agent_id = 'support-triage' limit 10;",
        "    select * from token_tracking_raw.usage_event_rejections;",
        "",
        f'  eval "$({ours} db url --env --database {demo.database}{option})"',
        f"  {dbt} build --project-dir {project} --profiles-dir {project}",
        "",
        f"  {ours} db stop{option}",
    )


def _typed(program: str) -> str:
    """Return what to type for a program of this environment, which need not be activated."""
    import os
    import sys
    from pathlib import Path

    if sys.prefix in {sys.base_prefix, os.environ.get("VIRTUAL_ENV")}:
        return program
    mine, here = Path(sys.prefix) / "bin" / program, Path.cwd()
    return str(mine.relative_to(here) if mine.is_relative_to(here) else mine)


if __name__ == "__main__":
    main()
