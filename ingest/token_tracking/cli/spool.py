"""The commands `token-tracking spool`, which show the local spool and send it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from .options import NOT_ALL_WELL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..client.connection import Connection
    from ..client.requests import Outcome
    from ..client.spool.folder import SpoolFolder
    from ..client.spool.spool import Spool, SpoolFile

_FLUSH_SECONDS = 30.0

spool_app = typer.Typer(
    no_args_is_help=True,
    help="The local spool: requests kept on disk while PostgreSQL is not available. Running "
    "services send it by themselves, including what ended processes left.",
)


@spool_app.command("status")
def spool_status() -> None:
    """Show the requests in the spool folder, one line per process, and in its sibling folders."""
    from rich.table import Table

    from ..client.spool.spool import spool_files
    from ..errors import SpoolError
    from .terminal import Terminal

    terminal = Terminal()
    folder = _folder()
    terminal.say(f"spool folder: {folder.path}")
    try:
        folder.places()
    except SpoolError as error:
        terminal.warn(str(error))
        raise typer.Exit(NOT_ALL_WELL) from None
    files = spool_files(folder.path)
    if files:
        table = Table("file", "belongs to", "waiting since")
        table.add_column("requests", justify="right")
        table.add_column("KiB", justify="right")
        for file in files:
            belongs = "a running process" if file.owned else "nobody: its process has ended"
            if file.problem:
                terminal.warn(f"not sent: {file.problem}")
                belongs = "somebody else"
            table.add_row(file.path.name, belongs, *_figures([file]))
        terminal.table(table)
    _tell_damaged(files)
    _tell_copies(folder.path)
    own = folder.note()[1]
    others = list(folder.others())
    if others:
        table = Table("other folder", "what waits there is for", "waiting since")
        table.add_column("requests", justify="right")
        table.add_column("KiB", justify="right")
        table.add_column("is sent by")
        for other in others:
            target, identity, _ = other.note()
            same = bool(own) and own == identity
            waiting = spool_files(other.path)
            _tell_damaged(waiting)
            _tell_copies(other.path)
            table.add_row(
                other.path.name,
                ("the same database: " if same else "") + (target or "an unknown database"),
                *_figures(waiting),
                "spool flush" if same else f"spool flush {other.path.name}",
            )
        terminal.table(table)
    if not files:
        terminal.result("nothing waits for this database" if others else "nothing waits")


@spool_app.command("flush")
def spool_flush(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER]...",
            help="Other folders, as named by status, whose events are also for this database: only "
            "you can know that.",
        ),
    ] = None,
) -> None:
    """Send the requests that ended processes left in the spool; it is safe to repeat.

    This includes requests spooled for the same database under another host, port or pooler. Files
    of running processes are left to these. Exit status 3 if requests are still waiting, or a copy
    of a file that lacked acknowledged requests still exists.
    """
    from ..client.connection import Connection
    from ..client.recovery import same_database
    from ..client.requests import Outcome
    from ..client.spool.spool import Spool, spool_files
    from .terminal import Terminal

    terminal = Terminal()
    folder = _folder()
    named = [_named(folder, name) for name in folders or ()]
    outcomes: Counter[Outcome] = Counter()
    with Connection.open(patience=_FLUSH_SECONDS) as database:
        sources = [folder, *same_database(folder, *database.identity())]
        sources += [one for one in named if one.path not in {source.path for source in sources}]
        for source in sources:
            for spool in Spool.adopt(source):
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
    left = [
        file
        for source in sources
        for file in spool_files(source.path)
        if file.holds_something() and file.problem is None
    ]
    for file in left:
        count = "an unknown number" if file.requests is None else f"{file.requests:,}"
        terminal.warn(
            f"{count} still wait in {file.path.name}: "
            + ("a running process brings them in" if file.owned else "see the messages above")
        )
    is_damaged = [_tell_copies(source.path) for source in sources]
    for other in folder.others():
        if other.path not in {source.path for source in sources}:
            terminal.warn(
                f"what waits in {other.path.name} is for {other.target or 'an unknown database'}: "
                f"see token-tracking spool status"
            )
    if any(not file.owned for file in left) or any(is_damaged):
        raise typer.Exit(NOT_ALL_WELL)


def _tell_damaged(files: Sequence[SpoolFile]) -> None:
    """Warn of requests that the disk has changed or lost."""
    from ..client.spool.damage import missing_text
    from .terminal import Terminal

    for file in files:
        if file.damaged:
            Terminal().warn(
                f"the disk has changed {file.damaged:,} request(s) in {file.path.name}: they are "
                "not sent, and stay"
            )
        if file.missing:
            Terminal().warn(missing_text(file.path, file.missing))


def _tell_copies(folder: Path) -> bool:
    """Warn of copies of files that lacked acknowledged requests; return whether there are any."""
    from ..client.spool.damage import kept_aside
    from .terminal import Terminal

    copies = kept_aside(folder)
    for path, missing in copies:
        Terminal().warn(
            f"{path} is kept: it lacks up to {missing:,} request(s) that were acknowledged. See "
            "docs/operations.md, and remove it, and the -wal beside it, when that is settled"
        )
    return bool(copies)


def _folder() -> SpoolFolder:
    from ..client.destination import spool_folder_of
    from ..client.settings import load_settings

    return spool_folder_of(load_settings(enabled=True))


def _named(folder: SpoolFolder, name: str) -> SpoolFolder:
    from pathlib import Path

    from ..client.spool.folder import SpoolFolder

    if folder.base is not None and Path(name).name == name:
        return SpoolFolder(folder.base / name, base=folder.base)
    if Path(name).is_dir():
        return SpoolFolder(Path(name))
    message = f"there is no spool folder {name}: see token-tracking spool status"
    raise typer.BadParameter(message)


def _figures(files: Sequence[SpoolFile]) -> tuple[str, str, str]:
    """Return the oldest request's time, the number of waiting requests and their size in KiB."""
    from datetime import UTC, datetime

    oldest = [file.oldest for file in files if file.oldest is not None]
    since = datetime.fromtimestamp(min(oldest), UTC).isoformat(" ", "seconds") if oldest else ""
    known = [file.requests for file in files if file.requests is not None]
    count = f"{sum(known):,}" if len(known) == len(files) else "unreadable"
    return since, count, f"{sum(file.bytes_on_disk for file in files) / 1024:,.0f}"


def _flush(spool: Spool, database: Connection, outcomes: Counter[Outcome]) -> None:
    from ..client.held_keys import HeldKeys
    from ..client.recovery import Aside, flush
    from ..errors import SpoolError
    from .terminal import Terminal

    try:
        held, aside, moved = HeldKeys(), Aside(untried=True), True
        while aside.untried and moved:
            held.begin_pass()
            aside, before = Aside(), outcomes.total()
            for ended in flush(spool, database, held, aside):
                outcomes.update(ended)
            moved = outcomes.total() > before
        if complaint := spool.complaint():
            Terminal().warn(complaint)
        elif not spool.is_empty():
            Terminal().warn(
                f"{spool.path.name}: of what is left, {aside.early:,} are more than 5 minutes "
                "ahead of the database's clock or have fields that its older schema does not know, "
                f"{aside.locked:,} wait for a lock that another transaction holds; others are "
                "named above"
            )
    except SpoolError as error:
        Terminal().warn(str(error))
