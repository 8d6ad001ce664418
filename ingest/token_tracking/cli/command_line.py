"""The command line `token-tracking`: its commands, and how failures are reported."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import TokenTrackingError
from ..escapes import escaped
from .compare import compare_command
from .db import db_app
from .demo import demo_command
from .load import load_command
from .options import FAILED, INTERRUPTED
from .prices import prices_app
from .refresh import refresh_command
from .report import report_command
from .schema import schema_app
from .spool import spool_app
from .validate import validate_command

if TYPE_CHECKING:
    from collections.abc import Generator


class Commands(TyperGroup):
    """All commands. Escapes usage errors, which may show an argument such as a file name."""

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
        # typer does not export the class of this error.
        said = vars(error).get("message")
        if hasattr(error, "format_message") and isinstance(said, str):
            vars(error)["message"] = escaped(said, keep="\\")
        raise


app = typer.Typer(
    cls=Commands,
    name="token-tracking",
    help="Exact token metering: services record usage events, dbt computes all totals.\n\n"
    "The database is the one of libpq's variables (PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE "
    "...); TOKEN_TRACKING_DSN overrides them for `load`, `schema`, `spool` and `prices`. "
    "`token-tracking demo` needs none: it brings a server of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(schema_app, name="schema")
app.command("load")(load_command)
app.add_typer(spool_app, name="spool")
app.add_typer(prices_app, name="prices")
app.add_typer(db_app, name="db")
app.command("demo")(demo_command)
app.command("refresh")(refresh_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("validate")(validate_command)


def main() -> None:
    """Run the command line; report any failure in one sentence and with a non-zero exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal may lack characters of a table or a name
    try:
        app()
    except TokenTrackingError as error:
        _fail(str(error), *getattr(error, "__notes__", ()))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001  # reported below
        if _was_interrupted(error):
            sys.exit(INTERRUPTED)
        import psycopg

        if not isinstance(error, psycopg.Error):
            # A bug in this package: show the traceback, but no messages, which may contain data.
            import traceback

            _fail("a fault in token-tracking", *traceback.format_exc().split("\n"))
        from ..target import Target

        _fail(Target.of().explain(error))


def _was_interrupted(error: BaseException) -> bool:
    """Return whether Ctrl-C caused an error; some libraries replace it while they load."""
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
    """Handle the options that belong to no command."""
