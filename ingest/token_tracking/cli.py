"""The command line `token-tracking`: each command imports only what it needs."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .compare_cli import compare_command
from .errors import TokenTrackingError
from .refresh_cli import refresh_command
from .report_cli import report_command
from .spool_cli import spool_app
from .validate_cli import validate_command

if TYPE_CHECKING:
    from .demo.demo import Demo, Story
    from .loading.load import Load
    from .loading.source import Source
    from .terminal import Terminal
    from .warehouse import Warehouse

FAILED = 1
LOADED_WITH_PROBLEMS = 3
INTERRUPTED = 130
FOLDER = Path(".token-tracking")
DATABASE = "token_tracking"

app = typer.Typer(
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
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        import psycopg

        if not isinstance(error, psycopg.Error):
            raise
        from .target import Target

        _fail(Target.of().explain(error))


def _fail(sentence: str) -> None:
    from .terminal import Terminal

    Terminal().fail(sentence)
    sys.exit(FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"token-tracking {version('token-tracking')}")
        except PackageNotFoundError:
            typer.echo("token-tracking, not installed")
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
        str, typer.Option(envvar="DBT_SCHEMA", help="The schema that dbt builds in.")
    ] = "token_tracking",
) -> None:
    """Create the raw schema, or bring an older one to this version. Doing it again is harmless.

    With --roles it makes five roles that nobody can log in as, gives each the rights that it needs,
    and takes every right in the raw schema from all others, also what was granted by name: it says
    from whom. It needs no superuser: CREATEROLE and CREATE on the database are enough.
    """
    from .database import Database
    from .roles import Roles
    from .schema import apply_schema
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
) -> None:
    """Record usage from files, each row once: load a file again, or as it grows, at any time.

    A row without idempotency_key is known by its values and, among equal rows, its ordinal. Rows
    that cannot be usage events are kept in usage_event_rejections, and the others are recorded.

    Exit codes: 0 all rows are in; 1 failed, what was reported is in; 3 done, but rows were refused
    or contradict recorded ones; 130 interrupted, what was reported is in.
    """
    from .loading.cells import columns_of, constants_of, zone_of
    from .loading.load import Load
    from .loading.plan import Plan
    from .loading.source import Format, Source
    from .target import Target
    from .terminal import Terminal

    terminal = Terminal()
    if file_format not in {None, *Format}:
        message = f"{file_format!r} is neither csv nor jsonl"
        raise typer.BadParameter(message, param_hint="--format")
    zone = zone_of(timezone)
    plan = Plan(columns_of(columns or []), constants_of(constants or [], zone), zone, source)
    sources = [Source.of(path, Format(file_format) if file_format else None) for path in files]
    Target.of()  # a broken connection string is said before anything is read
    load = Load(plan)
    try:
        _run_with_progress(load, sources, terminal)
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
    if load.has_problems:
        raise typer.Exit(LOADED_WITH_PROBLEMS)


def _run_with_progress(load: Load, sources: list[Source], terminal: Terminal) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    sizes = [source.size for source in sources]
    known = [size for size in sizes if size is not None]
    with Progress(
        TextColumn("loading"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        console=terminal.err,
        transient=True,
        disable=not terminal.err.is_terminal,
    ) as progress:
        total = sum(known) if len(known) == len(sizes) else None
        task = progress.add_task("loading", total=total, rows=0)
        load.run(
            sources,
            lambda size: progress.update(
                task, advance=size, rows=sum(file.rows for file in load.files)
            ),
        )


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
    terminal.out.print(table)
    for file in load.files:
        for note in file.notes:
            terminal.say(f"{file.name}: {note}")
        if file.sent_again:
            terminal.warn(
                f"{file.name}: the connection was lost; {file.sent_again:,} rows were sent again, "
                "those that had arrived before count as already known"
            )
        for problem in file.problems:
            terminal.warn(f"{problem.name}, line {problem.line}: {problem.kind}: {problem.reason}")
        more = file.conflicts + file.refused - len(file.problems)
        if more > 0:
            terminal.warn(
                f"{file.name}: {more:,} more; all are in token_tracking_raw.usage_event_rejections "
                "and usage_event_conflicts"
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

    out = terminal.out
    out.print(demo_tables.last_week(demo.rows("last_week", {"end_date": story.end_date})))
    out.print(demo_tables.months(demo.rows("months")))
    out.print(demo_tables.shared_agents(demo.rows("shared_agents")))
    out.print(demo_tables.doubtful(demo.rows("doubtful")))
    out.print(demo_tables.proof(demo.rows("proof")))


def _show_way_on(demo: Demo, warehouse: Warehouse, folder: Path, terminal: Terminal) -> None:
    from .server import embedded_bin_dir

    option = "" if folder == FOLDER else f" --folder {folder}"
    project = warehouse.project
    ours, dbt = (_typed(name) for name in ("token-tracking", "dbt"))
    lines = (
        f"\nThe database {demo.database!r} runs in {folder}. To look further:\n",
        f'  {embedded_bin_dir() / "psql"} "{demo.url}"\n',
        "    select * from token_tracking.monthly_token_usage order by usage_month, tokens desc;",
        "    select * from token_tracking.usage_events where agent_id = 'support-triage' limit 10;",
        "    select * from token_tracking_raw.usage_event_rejections;\n",
        f'  eval "$({ours} db url --env --database {demo.database}{option})"',
        f"  {dbt} build --project-dir {project} --profiles-dir {project}\n",
        f"  {ours} db stop{option}",
    )
    terminal.result("\n".join(lines))


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
