"""Usage out of files into the raw tables: a file can be loaded again, or as it grows."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from ..delivery import MAX_BATCH, MAX_BATCH_BYTES
from .ordinals import Ordinals
from .sender import FileReport, Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .plan import Accepted, Plan, Refused
    from .source import Source


class Load:
    """Loads files over one connection: while rows are written, the next ones are read.

    `files` is what became of the rows, also after an interruption or a failure: what is counted
    there is committed, and a load of the same files adds the rest.

    Example:
        >>> load = Load(Plan(constants={"tenant_id": "acme"}))  # doctest: +SKIP
        >>> load.run([Source.of("usage.jsonl")])
        >>> load.files[0].recorded
        19366

    """

    def __init__(self, plan: Plan, dsn: str | None = None) -> None:
        self.files: list[FileReport] = []
        self._plan = plan
        self._dsn = dsn

    @property
    def has_problems(self) -> bool:
        """Say whether a row is in conflict or refused."""
        return any(file.conflicts or file.refused for file in self.files)

    def run(
        self, sources: Sequence[Source], on_progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Load the sources one after the other.

        Args:
            sources: the files.
            on_progress: called with the number of bytes read since its last call.

        Raises:
            LoadError: a file cannot be loaded.
            psycopg.Error: the database cannot be reached, or not any more, or is not prepared.

        """
        self._plan.check(sources)
        sender = Sender(self._dsn)
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
        with source.open() as lines, Ordinals() as ordinals:
            rows, file.notes = self._plan.rows(source, lines)
            told = 0
            while chunk := list(islice(rows, MAX_BATCH)):
                for piece in _slices(self._plan.events(source, chunk, ordinals)):
                    sender.put(file, piece)
                on_progress(lines.bytes_taken - told)
                told = lines.bytes_taken


def _slices(events: Iterable[Accepted | Refused]) -> Iterator[list[Accepted | Refused]]:
    """Part the events where a statement would be longer than it may be."""
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
