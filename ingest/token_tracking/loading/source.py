"""The files to load: found, opened or refused as a whole, and read line by line."""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import LoadError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from _typeshed import WriteableBuffer

STDIN: Final = "-"
LONGEST_LINE: Final = 1024 * 1024  # characters, far more than a valid event can have
_NOT_TEXT: Final = {
    b"\x1f\x8b": "is compressed: gzip -dc FILE | token-tracking load - --format csv (or jsonl)",
    b"\xff\xfe": "is UTF-16 text: iconv -f UTF-16 -t UTF-8 FILE > UTF8_FILE",
    b"\xfe\xff": "is UTF-16 text: iconv -f UTF-16 -t UTF-8 FILE > UTF8_FILE",
    b"PK\x03\x04": "is a zip or Excel file: save it as CSV in UTF-8",
    b"PAR1": "is a Parquet file: save it as CSV in UTF-8",
}


class Format(StrEnum):
    """The format of a file."""

    CSV = "csv"
    JSONL = "jsonl"


SUFFIXES: Final = {
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
}


class LineTooLongError(Exception):
    """A line is longer than the limit; `start` is its beginning. Reading continues after it."""

    def __init__(self, start: str) -> None:
        self.start: str = start
        super().__init__()


@dataclass(frozen=True)
class Source:
    """A file to load, or standard input."""

    path: str
    format: Format

    @classmethod
    def of(cls, path: str, given: Format | None = None) -> Self:
        """Return the source of a path; its format is `given` or follows from its suffix.

        Raises:
            LoadError: the format is unknown, or there is no such file.

        """
        if path == STDIN:
            if given is None:
                message = "standard input has no suffix: say --format csv or --format jsonl"
                raise LoadError(message)
            return cls(path, given)
        file = Path(path)
        try:
            file.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        if file.is_dir():
            message = f"{path} is a folder: name the files in it"
            raise LoadError(message)
        known = given or SUFFIXES.get(file.suffix.lower())
        if known is None:
            message = (
                f"{path}: its suffix is not one of {', '.join(SUFFIXES)}: "
                "say --format csv or --format jsonl"
            )
            raise LoadError(message)
        return cls(path, known)

    @property
    def name(self) -> str:
        """Return the name for messages."""
        return "standard input" if self.path == STDIN else self.path

    @property
    def can_be_read_again(self) -> bool:
        """Return whether it is a regular file: a pipe can be read only once."""
        return self.path != STDIN and Path(self.path).is_file()

    @property
    def size(self) -> int | None:
        """Return its size in bytes; None if it is unknown before the end."""
        return Path(self.path).stat().st_size if self.can_be_read_again else None

    def open(self, longest_line: int = LONGEST_LINE) -> Lines:
        """Open it, as a context manager.

        Args:
            longest_line: the limit of a line's length, in characters.

        Raises:
            LoadError: the file cannot be opened, or is not UTF-8 text.

        """
        try:
            file = io.FileIO(0, closefd=False) if self.path == STDIN else io.FileIO(self.path)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        try:
            return Lines(self.name, file, longest_line)
        except OSError as error:
            file.close()
            raise _unreadable(self.name, error) from error


class _Counted(io.RawIOBase):
    """A file that counts the bytes read from it, since a pipe has no position."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        size = self._file.readinto(buffer)
        self.taken += size
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class Lines:
    """The lines of an opened source, with their line ends; `taken` holds those since `begin`.

    Bytes that are not UTF-8 become lone surrogates, so that the rules refuse only their row.
    """

    def __init__(self, name: str, file: io.FileIO, longest: int = LONGEST_LINE) -> None:
        self.name = name
        self.longest = longest  # characters of a line
        self.number = 0  # of the line read last, 1-based
        self.has_ended = False  # as of the last attempt to read a line
        self.blank_rows = 0
        self.left_out: dict[str, tuple[int, int]] = {}
        """Of an export, by the reason why they are no usage: how many records, the first line."""
        self.unread: int | None = None  # the line from which on the file may still be written
        self._counted = _Counted(file)
        buffer = io.BufferedReader(self._counted, 256 * 1024)
        start = buffer.peek(4)[:4]
        self.is_empty = not start
        for magic, what in _NOT_TEXT.items():
            if start.startswith(magic):
                buffer.close()
                message = f"{name} {what}"
                raise LoadError(message)
        self._text = io.TextIOWrapper(buffer, "utf-8-sig", "surrogateescape", newline="")
        self.taken: list[str] = []
        self._put_back: list[str] = []

    @property
    def bytes_taken(self) -> int:
        """Return how many bytes were read, including those read ahead."""
        return self._counted.taken

    def leave_out(self, what: str, line: int) -> None:
        """Count a record that is no usage."""
        count, first = self.left_out.get(what, (0, line))
        self.left_out[what] = count + 1, first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._text.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """Return the next line.

        Raises:
            LineTooLongError: the line is too long; the next one can still be read.
            LoadError: the file cannot be read any further.

        """
        line = self._put_back.pop() if self._put_back else self._read()
        if not line:
            self.has_ended = True
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """Begin a record: the lines read so far cannot be put back any more."""
        self.taken.clear()

    def is_cut(self) -> bool:
        """Return whether the line read last has no line end: it is the file's last one."""
        return self.taken[-1][-1] not in "\r\n"

    def put_back_all_but_first(self) -> str:
        """Return the first line of the record; the lines after it will be read again."""
        first, *others = self.taken
        self.has_ended = False
        self.number -= len(others)
        self._put_back += reversed(others)
        self.taken.clear()
        return first

    def _read(self) -> str:
        try:
            line = self._text.readline(self.longest)
            if len(line) < self.longest or line[-1] in "\r\n":
                return line
            rest = line
            while rest and rest[-1] not in "\r\n":
                rest = self._text.readline(self.longest)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        self.number += 1
        raise LineTooLongError(line)


def _unreadable(name: str, error: OSError) -> LoadError:
    return LoadError(f"{name} cannot be read: {(error.strerror or 'unknown reason').lower()}")
