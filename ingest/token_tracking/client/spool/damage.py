"""Detects disk damage to a spool file before SQLite can write to it, and keeps a copy.

SQLite treats the first bad frame of a write-ahead log as the end of the log, and its main file has
no checksums. So the lock beside a file records the highest acknowledged number, and each row has
its own checksum.
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
    """The highest acknowledged number, recorded in the lock beside a spool file.

    It is written after the commit is on disk, so it is never ahead of the file and needs no sync of
    its own. 0 if the lock has no number, since an earlier version wrote it.
    """

    def __init__(self, lock: int) -> None:
        found = _NOTE.match(os.pread(lock, 1000, 0))
        self._lock = lock
        self._place = found.start(1) if found else None
        self.number = int(found[1]) if found else 0

    @staticmethod
    def first_text() -> bytes:
        """Return the content of a new lock; earlier versions read its first and its last word."""
        host, _, boot = this_machine().rpartition(" ")
        return f"{host} {0:0{_DIGITS}} {boot}".encode()

    def note(self, number: int) -> None:
        """Overwrite the number in place."""
        if self._place is None:
            return
        try:
            os.pwrite(self._lock, b"%0*d" % (_DIGITS, number), self._place)
        except OSError as error:  # the requests themselves are on disk
            logger.debug("not noted in the spool's lock: %s", error.strerror)
        else:
            self.number = number


def checksum(kind: bytes, payload: bytes) -> int:
    """Return the checksum stored with a row, which shows whether the disk has changed it."""
    return zlib.crc32(payload, zlib.crc32(kind))


def read_only(path: Path) -> sqlite3.Connection:
    """Return a connection that does not change file and log, even when it is closed.

    Any other connection, if it is the last one to close, writes into the file what it could read
    of the log, and removes the log.
    """
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def highest_number(connection: sqlite3.Connection) -> int:
    """Return the highest number that the file has ever assigned to a request."""
    table = "select count(*) from sqlite_master where name = 'sqlite_sequence'"
    if not connection.execute(table).fetchone()[0]:
        return 0
    highest = "select max(cast(seq as integer)) from sqlite_sequence where name = 'requests'"
    return connection.execute(highest).fetchone()[0] or 0


def keep_what_is_missing(path: Path, acknowledged: Acknowledged) -> None:
    """Copy file and log aside if they lack acknowledged requests, and log that.

    The caller must hold the lock and have no connection open. Afterwards the lock records the
    highest number that the file does have, and continues from there.

    Raises:
        SpoolError: no copy can be made; the file is unchanged.
        sqlite3.Error: the file cannot be read at all; it is unchanged.

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
            for suffix in ("-wal", ""):  # the file last: once it is there, the copy is complete
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
    """Describe how many acknowledged requests a file lacks."""
    return f"the spool file {path} lacks up to {missing} request(s) that were acknowledged"


def kept_aside(folder: Path) -> list[tuple[Path, int]]:
    """Return the copies kept in a folder and its subfolders, with the number that each lacks."""
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
