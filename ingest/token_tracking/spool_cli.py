"""The commands `token-tracking spool`: what waits on local disk for the database that is set."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from .database import Database
    from .requests import Outcome
    from .spool import Spool

STILL_WAITING = 3
_FLUSH_SECONDS = 30.0

spool_app = typer.Typer(
    no_args_is_help=True,
    help="What waits on local disk while PostgreSQL cannot answer. Running services bring it in by "
    "themselves, also what ended ones left.",
)


@spool_app.command("status")
def spool_status() -> None:
    """Show the spool's folder and what waits in it, one line a process that wrote there."""
    from datetime import UTC, datetime

    from rich.table import Table

    from .spool import spool_files
    from .terminal import Terminal
    from .tracker import UsageTracker

    terminal = Terminal()
    folder = UsageTracker(enabled=True).spool_folder()
    files = spool_files(folder)
    terminal.say(f"spool folder: {folder}")
    if not files:
        terminal.result("nothing waits")
        return
    table = Table("file", "belongs to", "waiting since")
    table.add_column("requests", justify="right")
    table.add_column("KiB", justify="right")
    for file in files:
        since = (
            datetime.fromtimestamp(file.oldest, UTC).isoformat(" ", "seconds")
            if file.oldest is not None
            else ""
        )
        table.add_row(
            file.path.name,
            "a running process" if file.owned else "nobody: its process has ended",
            since,
            "unreadable" if file.requests is None else f"{file.requests:,}",
            f"{file.bytes_on_disk / 1024:,.0f}",
        )
    terminal.out.print(table)


@spool_app.command("flush")
def spool_flush() -> None:
    """Send what ended processes left in the spool to the database; it can be done again.

    Files of running processes are left to them. Exit status 3 where something still waits.
    """
    from .database import Database
    from .requests import Outcome
    from .spool import Spool, spool_files
    from .terminal import Terminal
    from .tracker import UsageTracker

    terminal = Terminal()
    folder = UsageTracker(enabled=True).spool_folder()
    outcomes: Counter[Outcome] = Counter()
    with Database.open(patience=_FLUSH_SECONDS) as database:
        for spool in Spool.adopt(folder):
            try:
                _flush(spool, database, outcomes)
            finally:
                spool.close()
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items() if count)
    terminal.result(f"flushed: {told}" if told else "nothing to flush")
    if outcomes[Outcome.CONFLICT] or outcomes[Outcome.REJECTED]:
        terminal.warn(
            "what is not counted is in token_tracking_raw.usage_event_rejections "
            "and usage_event_conflicts"
        )
    left = [file for file in spool_files(folder) if file.requests != 0]
    for file in left:
        count = "an unknown number" if file.requests is None else f"{file.requests:,}"
        terminal.warn(
            f"{count} still wait in {file.path.name}: "
            + ("a running process brings them in" if file.owned else "see the messages above")
        )
    if any(not file.owned for file in left):
        raise typer.Exit(STILL_WAITING)


def _flush(spool: Spool, database: Database, outcomes: Counter[Outcome]) -> None:
    from .errors import SpoolError
    from .recovery import flush
    from .terminal import Terminal

    try:
        for ended in flush(spool, database):
            outcomes.update(ended)
        if complaint := spool.complaint():
            Terminal().warn(complaint)
        elif not spool.is_empty():
            Terminal().warn(
                f"{spool.path.name}: what is left is named above, or more than 5 minutes ahead of "
                "the database's clock, and waits for it"
            )
    except SpoolError as error:
        Terminal().warn(str(error))
