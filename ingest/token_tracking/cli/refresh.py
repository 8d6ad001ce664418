"""The command `token-tracking refresh`: dbt builds inside one resident process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .options import INTERRUPTED

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping
    from pathlib import Path

    from ..refresh.loop import Built, Failed, Told
    from ..refresh.project import Warehouse
    from .terminal import Terminal


class LineFormat(StrEnum):
    """The output format of progress lines."""

    TEXT = "text"
    JSON = "json"


def refresh_command(
    every: Annotated[
        str, typer.Option(help="How often to look for changes: 500ms, 5s, 1m.")
    ] = "5s",
    once: Annotated[
        bool,
        typer.Option("--once", help="Build once and exit, with exit code 1 if the build fails."),
    ] = False,
    grace: Annotated[
        str,
        typer.Option(
            help="How long a running build may continue after SIGTERM; then it is rolled back."
        ),
    ] = "10s",
    variables: Annotated[
        str | None,
        typer.Option("--vars", help="dbt's --vars, for every build.", show_default=False),
    ] = None,
    output: Annotated[
        LineFormat, typer.Option("--format", help="Lines for people, or one JSON object per line.")
    ] = LineFormat.TEXT,
) -> None:
    """Keep the totals fresh: dbt stays in memory and builds whenever something has changed.

    It builds after a new event, void or owner, a changed file of the project, changed label aliases
    or views, or if a total is behind. Looking for changes costs milliseconds. It builds the models,
    and also the seed at first and when the project has changed; it never runs tests: run `dbt
    build` for these now and then.

    Each build is reported on a line with its lag, the age of the oldest event that it added. An
    unreachable database or a failing model is reported and retried, at growing intervals of up to
    half a minute. SIGTERM or Ctrl-C ends the command with exit code 0; a second signal ends it at
    once. Two instances may run at the same time. The database is the one of libpq's variables.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from ..refresh.project import Warehouse
    from ..refresh.until_stopped import run_until_stopped
    from ..target import Target, differing_databases
    from .terminal import Terminal

    terminal = Terminal()
    seconds = _seconds(every, "--every", least=0.1)
    longest = _seconds(grace, "--grace", least=0.0)
    target = Target.of("")
    if warning := differing_databases():
        terminal.warn(warning)
    scratch = TemporaryDirectory(prefix="token-tracking-", ignore_cleanup_errors=True)
    teller = _JsonTeller(terminal) if output is LineFormat.JSON else _TextTeller(terminal)

    def work(stop: threading.Event) -> None:
        _work(warehouse, variables, Path(scratch.name), seconds, once, teller, stop)

    def give_up(reason: str) -> None:
        teller.stopped(reason)
        scratch.cleanup()

    with scratch:
        warehouse = Warehouse.find({}, Path(scratch.name))
        if not once:
            teller.started(str(target), seconds)
        was_stopped = run_until_stopped(work, grace=longest, give_up=give_up)
    if was_stopped:
        teller.stopped("stopped")
        if once:
            raise typer.Exit(INTERRUPTED)


def _work(
    warehouse: Warehouse,
    variables: str | None,
    folder: Path,
    every: float,
    once: bool,
    teller: _Teller,
    stop: threading.Event,
) -> None:
    from ..refresh.loop import Refresh
    from ..refresh.resident import ResidentDbt

    refresh = Refresh(ResidentDbt(warehouse, folder, variables), every, teller.tell, stop)
    if once:
        refresh.once()
    else:
        refresh.run()


def _seconds(text: str, option: str, *, least: float) -> float:
    from ..refresh.durations import seconds_of

    try:
        return seconds_of(text, least=least, most=86400)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


class _Teller(ABC):
    """Writes a line for each event of the refresh."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    @abstractmethod
    def started(self, target: str, every: float) -> None: ...

    @abstractmethod
    def tell(self, told: Told) -> None: ...

    @abstractmethod
    def stopped(self, reason: str) -> None: ...


class _JsonTeller(_Teller):
    def started(self, target: str, every: float) -> None:
        self._write("started", {"database": target, "every_seconds": every})

    def tell(self, told: Told) -> None:
        from ..refresh.loop import Built, Failed

        if isinstance(told, Built):
            arrivals = told.arrivals
            self._write(
                "built",
                {
                    "run_number": told.run_number,
                    "built": told.scope,
                    "events": arrivals.events if arrivals else None,
                    "voids": arrivals.voids if arrivals else None,
                    "owners": arrivals.owners if arrivals else None,
                    "lag_seconds": _rounded(told.lag),
                    "build_seconds": _rounded(told.seconds),
                },
            )
        elif isinstance(told, Failed):
            waiting = told.waiting
            self._write(
                "failed",
                {
                    "message": told.message,
                    "nodes": told.nodes,
                    "attempt": told.attempt,
                    "retry_seconds": _rounded(told.retry),
                    "events_waiting": waiting.events if waiting else None,
                    "lag_seconds": _rounded(waiting.lag if waiting else None),
                },
            )
        else:
            self._write(
                "recovered", {"attempts": told.attempts, "after_seconds": _rounded(told.seconds)}
            )

    def stopped(self, reason: str) -> None:
        self._write("stopped", {"message": reason})

    def _write(self, event: str, datum: Mapping[str, object]) -> None:
        self._terminal.json({"event": event, "at": _now(), **datum})


class _TextTeller(_Teller):
    def started(self, target: str, every: float) -> None:
        self._say(f"refreshing {target} every {every:g} s")

    def tell(self, told: Told) -> None:
        from ..refresh.loop import Built, Failed

        if isinstance(told, Built):
            self._terminal.result(f"{_now()} {_built(told)}")
        elif isinstance(told, Failed):
            self._say(_failed(told))
        else:
            attempts = "1 attempt" if told.attempts == 1 else f"{told.attempts} attempts"
            self._say(f"works again, after {attempts} and {told.seconds:.1f} s")

    def stopped(self, reason: str) -> None:
        self._say(reason)

    def _say(self, text: str) -> None:
        self._terminal.say(f"{_now()} {text}")


def _built(built: Built) -> str:
    arrivals = built.arrivals
    if arrivals is None:
        came = "all counted for the first time"
    else:
        counts = {"event": arrivals.events, "void": arrivals.voids, "owner": arrivals.owners}
        parts = [
            f"{count:,} {name}{'' if count == 1 else 's'}"
            for name, count in counts.items()
            if count
        ]
        came = ", ".join(parts) or "no new events"
        if built.lag is not None:
            came += f", the oldest {built.lag:.1f} s old"
    return f"run {built.run_number}: {came}; built in {built.seconds:.1f} s"


def _failed(failed: Failed) -> str:
    said = failed.message or f"still so after {failed.attempt} attempts"
    if len(failed.nodes) > 1:
        said += f" (and {len(failed.nodes) - 1} more)"
    waiting = failed.waiting
    if waiting is not None and waiting.lag is not None:
        said += f"; {waiting.events:,} events wait, the oldest {waiting.lag:.1f} s old"
    return f"{said}; next attempt in {failed.retry:.1f} s"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(" ", "milliseconds").replace("+00:00", "Z")
