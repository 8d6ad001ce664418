"""Loads usage from files into the raw tables; a file can be loaded again, or as it grows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from ..client.delivery import MAX_BATCH, MAX_BATCH_BYTES
from .cells import Texts
from .ordinals import Ordinals
from .recorded import Alike
from .sender import FileReport, Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .plan import Accepted, Plan, Refused
    from .source import Source


class Load:
    """Loads files over one connection: it reads the next rows while the last ones are written.

    `files` holds the results, also after an interruption or a failure: the rows counted there are
    committed, and loading the same files again adds the rest. `alike` says what to do with rows
    that are recorded under other keys; the default is to stop, or, with a source, to record them.

    Example:
        >>> load = Load(Plan(constants={"tenant_id": "acme"}))  # doctest: +SKIP
        >>> load.run([Source.of("usage.jsonl")])
        >>> load.files[0].recorded
        19366

    """

    def __init__(self, plan: Plan, dsn: str | None = None, alike: Alike | None = None) -> None:
        self.files: list[FileReport] = []
        self._plan = plan
        self._dsn = dsn
        # Naming a source means that its rows differ from those of all other sources.
        self._alike = alike or (Alike.RECORD if plan.source else Alike.STOP)

    @property
    def has_problems(self) -> bool:
        """Return whether a row is in conflict, refused, or recorded with another time."""
        return any(file.conflicts or file.refused or file.has_wrong_times for file in self.files)

    @property
    def has_unread(self) -> bool:
        """Return whether the end of a file was left unread."""
        return any(file.unread is not None for file in self.files)

    def run(
        self, sources: Sequence[Source], on_progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Load the sources one after the other.

        Args:
            sources: the files.
            on_progress: called with the number of bytes read since its last call.

        Raises:
            LoadError: a file cannot be loaded, or a row is recorded under another key.
            psycopg.Error: the connection failed or was lost, or the raw schema is missing.

        """
        self._plan.check(sources)
        sender = Sender(self._dsn, self._plan, self._alike)
        sender.start()
        try:
            for source in sources:
                self._load(source, sender, on_progress)
            sender.finish()
        except BaseException:
            sender.stop()
            raise

    def _load(self, source: Source, sender: Sender, on_progress: Callable[[int], object]) -> None:
        file = FileReport(source.name)
        self.files.append(file)
        for piece in slices_of(self._plan, source, file, on_progress):
            sender.put(source, file, piece)


def slices_of(
    plan: Plan, source: Source, file: FileReport, on_progress: Callable[[int], object]
) -> Iterator[list[Accepted | Refused]]:
    """Yield the events and refused rows of a source in slices of the size of one statement.

    Notes about the file as a whole are added to its report.
    """
    texts = Texts(plan.nulls)
    with plan.open(source) as lines, Ordinals() as ordinals:
        rows, file.notes = plan.rows(source, lines)
        told = 0
        while chunk := list(islice(rows, MAX_BATCH)):
            yield from _slices(plan.events(source, chunk, ordinals, texts))
            on_progress(lines.bytes_taken - told)
            told = lines.bytes_taken
        on_progress(lines.bytes_taken - told)
        file.unread = lines.unread
        if lines.blank_rows:
            file.notes.append(f"{lines.blank_rows:,} rows of nothing but empty cells")
        for what, (count, first) in lines.left_out.items():
            file.notes.append(f"left out: {count:,} {what}, the first in line {first:,}")
    for name, line in texts.unusual_ids.items():
        file.notes.append(
            f"{name}, line {line}: a UUID in another form than usual (lower case, four dashes): "
            "ids are compared as text, so to be the same it must be written the same everywhere"
        )


def _slices(events: Iterable[Accepted | Refused]) -> Iterator[list[Accepted | Refused]]:
    """Split the events so that no statement exceeds the maximum size."""
    piece: list[Accepted | Refused] = []
    size = 2
    for event in events:
        more = len(event.payload) + 1
        if piece and size + more > MAX_BATCH_BYTES:
            yield piece
            piece, size = [], 2
        piece.append(event)
        size += more
    if piece:
        yield piece
