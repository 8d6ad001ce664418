"""What a disk did to a spool file: noticed before SQLite can write to it, and kept.

SQLite takes the first bad frame of a write-ahead log for the end of the log, and its main file has
no checksums. So the lock beside a file notes the highest number that was acknowledged, and each row
has a checksum of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import zlib
from typing import TYPE_CHECKING, Final

from ...errors import SpoolError
from ..logs import SafeLogger
from .folder import KEPT_SUFFIX, sync_folder, tell_once, this_machine

if TYPE_CHECKING:
    from pathlib import Path

logger = SafeLogger(__name__)

_DIGITS: Final = 20
_NOTE: Final = re.compile(rb".* (\d{20}) ")
_MISSING: Final = re.compile(r"\.(\d+)-missing\.damaged")
_COPIED_AT_ONCE: Final = 2**20


class Acknowledged:
    """The highest number that was acknowledged, noted in the lock beside a spool file.

    It is noted after the commit is on disk, so it is never ahead of the file, and needs no sync of
    its own. 0 where nothing is noted: an earlier version wrote the lock.
    """

    def __init__(self, lock: int) -> None:
        found = _NOTE.match(os.pread(lock, 1000, 0))
        self._lock = lock
        self._place = found.start(1) if found else None
        self.number = int(found[1]) if found else 0

    @staticmethod
    def first_text() -> bytes:
        """Return what a new lock says; earlier versions read its first and its last word."""
        host, _, boot = this_machine().rpartition(" ")
        return f"{host} {0:0{_DIGITS}} {boot}".encode()

    def note(self, number: int) -> None:
        """Note another number, in place."""
        if self._place is None:
            return
        try:
            os.pwrite(self._lock, b"%0*d" % (_DIGITS, number), self._place)
        except OSError as error:  # what it is about is on disk
            logger.debug("not noted in the spool's lock: %s", error.strerror)
        else:
            self.number = number


def checksum(kind: bytes, payload: bytes) -> int:
    """Return what is kept with a row, to tell whether the disk has changed what is sent."""
    return zlib.crc32(payload, zlib.crc32(kind))


def read_only(path: Path) -> sqlite3.Connection:
    """Return a connection that leaves file and log as they are, also when it is closed.

    Any other one, as the last to be closed, writes into the file what it takes for the log, and
    removes the log.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def highest_number(connection: sqlite3.Connection) -> int:
    """Return the highest number that a file has ever given to a request."""
    table = "select count(*) from sqlite_master where name = 'sqlite_sequence'"
    if not connection.execute(table).fetchone()[0]:
        return 0
    highest = "select max(cast(seq as integer)) from sqlite_sequence where name = 'requests'"
    return connection.execute(highest).fetchone()[0] or 0


def keep_what_is_missing(path: Path, acknowledged: Acknowledged) -> None:
    """Copy file and log aside where they lack something that was acknowledged, and tell that.

    It is called by who holds the lock, with no connection open. Then the note says what the file
    has, so that it goes on from there.

    Raises:
        SpoolError: no copy can be made; the file is as it was.
        sqlite3.Error: the file cannot be read at all; it is as it was.

    """
    if not acknowledged.number:
        return
    highest = 0
    if path.stat().st_size:  # else SQLite would remove the log
        connection = read_only(path)
        try:
            highest = highest_number(connection)
        finally:
            connection.close()
    if highest >= acknowledged.number:
        return
    missing = acknowledged.number - highest
    kept = path.with_suffix(f".{missing}-missing{KEPT_SUFFIX}")
    try:
        if not kept.exists():
            for suffix in ("-wal", ""):  # the file's name last: with it the copy is whole
                _copy(path.with_name(path.name + suffix), kept.with_name(kept.name + suffix))
            sync_folder(path.parent)
    except OSError as error:
        message = f"{missing_text(path, missing)}, and no copy of it can be made: {error.strerror}"
        raise SpoolError(message) from error
    tell_once(
        f"{missing_text(path, missing)}: the disk changed or lost them. What can be read is sent; "
        f"the file as it was found is kept as {kept} until you remove it"
    )
    acknowledged.note(highest)


def missing_text(path: Path, missing: int) -> str:
    """Say how many acknowledged requests a file lacks."""
    return f"the spool file {path} lacks up to {missing} request(s) that were acknowledged"


def kept_aside(folder: Path) -> list[tuple[Path, int]]:
    """Return the copies that were kept in a folder and those below it, and what each lacks."""
    found: list[tuple[Path, int]] = []
    for path in sorted(folder.rglob(f"*{KEPT_SUFFIX}")):
        missing = _MISSING.search(path.name)
        found.append((path, int(missing[1]) if missing else 0))
    return found


def _copy(source: Path, copy: Path) -> None:
    if not source.exists():
        return
    part = copy.with_name(f"{copy.name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with source.open("rb") as found, os.fdopen(os.open(part, flags, 0o600), "wb") as made:
            shutil.copyfileobj(found, made, _COPIED_AT_ONCE)
            made.flush()
            os.fsync(made.fileno())
        part.replace(copy)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
