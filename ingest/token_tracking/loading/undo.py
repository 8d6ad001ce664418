"""Undoes a load: voids what it recorded, by the keys of the same files and options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from ..client.connection import Connection
from ..errors import LoadError
from .load import slices_of
from .plan import Accepted
from .recorded import Voided, void_recorded
from .sender import PATIENCE, FileReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .plan import Plan
    from .source import Source


class Undo:
    """Voids the events that loads of some files recorded, and no others.

    An event is voided if it has the key of a row and is recorded exactly as file and options say.
    So an event that a load with other options recorded stays, and so does one that a service
    recorded with the key. Repeating an undo has no effect. `files` holds the results, also after an
    interruption. `unread` is, by file, the line from which on the file was left unread: what a load
    with `is_whole` recorded of it stays.

    Example:
        >>> undo = Undo(Plan(constants={"tenant_id": "acme"}))  # doctest: +SKIP
        >>> undo.run([Source.of("usage.jsonl")], "wrong time zone")
        >>> undo.files["usage.jsonl"].voided
        19366

    """

    def __init__(self, plan: Plan, dsn: str | None = None) -> None:
        self.files: dict[str, Voided] = {}
        self.unread: dict[str, int] = {}
        self._plan = plan
        self._dsn = dsn

    def run(
        self,
        sources: Sequence[Source],
        reason: str,
        on_progress: Callable[[int], object] = lambda _: None,
        *,
        is_trial: bool = False,
    ) -> None:
        """Void the events that loads of the sources recorded; in a trial, only count them.

        Raises:
            LoadError: a file cannot be read, or the raw schema is older than this package.
            psycopg.Error: the connection failed or was lost, or the raw schema is missing.

        """
        self.files = {source.name: Voided(0, 0, 0, 0) for source in sources}
        self.unread = {}
        self._plan.check(sources)
        with Connection.open(self._dsn, patience=PATIENCE) as database:
            for source in sources:
                report = FileReport(source.name)
                for piece in slices_of(self._plan, source, report, on_progress):
                    events = [row for row in piece if isinstance(row, Accepted)]
                    if events:
                        self._void(database, source.name, events, reason, is_trial=is_trial)
                if report.unread is not None:
                    self.unread[source.name] = report.unread

    def _void(
        self,
        database: Connection,
        name: str,
        events: Sequence[Accepted],
        reason: str,
        *,
        is_trial: bool,
    ) -> None:
        try:
            done = void_recorded(database, events, reason, is_trial=is_trial)
        except psycopg.errors.UndefinedFunction as error:
            message = "the raw schema is of an earlier version: token-tracking schema apply"
            raise LoadError(message) from error
        before = self.files[name]
        self.files[name] = Voided(*(was + now for was, now in zip(before, done, strict=True)))
