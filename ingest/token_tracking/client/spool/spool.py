"""The local spool: requests kept in one SQLite file per process while PostgreSQL is unavailable.

A folder belongs to one database, so that no request is sent to a database that it was not meant
for. A file belongs to the process that holds the lock beside it. The kernel releases the lock when
the process ends for any reason; then the file is an orphan that any other process of its user
adopts. A request may be in the spool and in PostgreSQL at the same time: its key deduplicates it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import sqlite3
import stat
import threading
import time
import weakref
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ...errors import SpoolError
from .. import forks
from ..delivery import in_slices
from ..logs import SafeLogger
from ..requests import Request, kept_form, restored
from .damage import (
    Acknowledged,
    checksum,
    highest_number,
    keep_what_is_missing,
    read_only,
)
from .folder import (
    SUFFIX,
    SpoolFolder,
    descriptor_problem,
    file_problem,
    foreign_lock,
    is_open,
    shared_file_system,
    sync_folder,
    tell_once,
    warn_of_shared,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

logger = SafeLogger(__name__)

_BUSY_SECONDS = 0.2  # only a person opens the file; the next batch gets a new file
_MOST_WAL_BYTES = 16 * 2**20
_MOVED_AT_ONCE = 5000
_MOST_NAMED = 10
_AS_BYTES = "surrogateescape"  # a byte changed by the disk affects only its own row
# After these errors nothing was written; after any other, a crash may or may not leave the rows.
_SURE_FAILURES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
}

# One statement per batch: each step of SQLite releases the GIL, and getting it back takes
# milliseconds under load.
_APPEND = """
    insert into requests (spooled_at, kind, first, second, payload, checksum)
    select
        ?, json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        cast(json_extract(value, '$[3]') as blob), json_extract(value, '$[4]')
    from json_each(?)
    order by key
"""
# Cast each value, as one that the disk has changed may have any type.
_OLDEST = """
    select json_group_array(json_array(
        number, coalesce(cast(kind as text), ''), coalesce(cast(first as text), ''),
        coalesce(cast(second as text), ''), coalesce(cast(payload as text), ''), checksum
    ))
    from (
        select
            number, kind, first, second, payload, cast({checksum} as integer) as checksum,
            sum(length(payload)) over (order by number) - length(payload) as size_before
        from (select * from requests where number > ? order by number limit ?)
        order by number
    )
    where size_before < ?
"""
_WAITING = """
    select
        count(*),
        min(spooled_at),
        count(*) filter (
            where {checksum} <> checksum_of(
                coalesce(cast(kind as blob), x''), coalesce(cast(payload as blob), x'')
            )
        )
    from requests
"""


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One file of a spool folder, as `status` found it; `requests` is None if it is unknown.

    `damaged` counts the requests that the disk has changed, which are not sent; `missing` counts
    acknowledged requests that are not in the file. `problem` says why the file is not opened:
    another user owns it or can write to it.
    """

    path: Path
    requests: int | None
    bytes_on_disk: int
    oldest: float | None
    owned: bool
    problem: str | None = None
    damaged: int = 0
    missing: int = 0

    def holds_something(self) -> bool:
        """Return whether requests wait in the file, may wait, or are missing from it."""
        return self.requests != 0 or self.missing != 0


class Spool:
    """A spool file: its owner appends, its owner or adopter drains; unusable after a fork.

    Only `is_gone` may be called while another thread closes the file. It also reports a file that
    somebody else changed; the waiting requests must then be moved to another file.
    """

    def __init__(self, path: Path, lock: int, max_bytes: int | None = None) -> None:
        self.path = path
        self._lock = lock
        self._acknowledged = Acknowledged(lock)
        self._forgotten = 0
        # Rows that are skipped and stay: of an unknown kind, or changed by the disk.
        self._unknown: set[int] = set()
        self._damaged: set[int] = set()
        # The owner's threads share the connection: one statement or one transaction at a time.
        self._using = threading.RLock()
        self._connection = _opened(path, max_bytes)
        self._oldest = _with_checksum(_OLDEST, self._connection)
        problem = _problem_of(path)
        if problem is None and not is_open(path, Path(f"{path}-wal")):
            problem = f"the spool file {path} was replaced while it was opened"
        if problem is not None:
            # Never closed: that would write into a file of unknown ownership.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            raise SpoolError(problem)
        # On a shared file system, inodes and times depend on the server.
        self._watched = shared_file_system(path) is None
        self._is_spoiled = False
        self._looks = self._look()
        _open_spools.add(self)

    @classmethod
    def create(cls, folder: Path | SpoolFolder, max_bytes: int) -> Spool:
        """Create a new file that this process owns.

        Raises:
            SpoolError: the folder cannot be created or written, or another user controls it.

        """
        folder = SpoolFolder.of(folder)
        try:
            with forks.postponed:
                place = folder.prepared()
                warn_of_shared(place)
                path = place / f"{uuid4()}{SUFFIX}"
                lock = _take_lock(path)
                assert lock is not None  # noqa: S101  # no other process knows the name
                try:
                    os.write(lock, Acknowledged.first_text())
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
                    spool = cls(path, lock, max_bytes)
                    sync_folder(place)
                except BaseException:
                    _remove(path)
                    os.close(lock)
                    raise
        except (OSError, sqlite3.Error) as error:
            message = f"the spool folder {folder.path} cannot be used: {_said(error)}"
            raise SpoolError(message) from error
        return spool

    @classmethod
    def adopt(cls, folder: Path | SpoolFolder) -> Iterator[Spool]:
        """Adopt each file of this user whose process has ended, one after the other.

        A missing folder counts as empty.

        Raises:
            SpoolError: the folder cannot be read, or another user controls it.

        """
        folder = SpoolFolder.of(folder)
        try:
            paths = _files_in(folder)
        except OSError as error:
            message = f"the spool folder {folder.path} cannot be used: {_said(error)}"
            raise SpoolError(message) from error
        warn_of_shared(folder.path)
        for path in paths:
            try:
                with forks.postponed:
                    spool = cls._adopted(path)
            except SpoolError as error:
                tell_once(f"not sent: {error}")
            except (OSError, sqlite3.Error) as error:
                tell_once(f"the spool file {path} cannot be read: {_said(error)}")
            else:
                if spool is not None:
                    yield spool

    @classmethod
    def _adopted(cls, path: Path) -> Spool | None:
        if problem := _problem_of(path):
            raise SpoolError(problem)
        lock = _take_lock(path)
        if lock is None:
            return None
        try:
            if path.exists():
                if problem := foreign_lock(path, os.pread(lock, 1000, 0).decode(errors="replace")):
                    raise SpoolError(problem)
                keep_what_is_missing(path, Acknowledged(lock))
                return cls(path, lock)
            path.with_suffix(".lock").unlink(missing_ok=True)  # drained meanwhile
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        return None

    def is_gone(self) -> bool:
        """Return whether the file on disk may differ from what this process wrote.

        That is so if somebody removed, replaced or changed it or its write-ahead log: this process
        then reads and writes a file that no other process will find whole.
        """
        with forks.postponed:
            if not self._is_spoiled:
                seen = self._look()
                self._is_spoiled = seen != self._looks or seen[0] is None
            return self._is_spoiled

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_look(f"{self.path}{suffix}", whole=self._watched) for suffix in ("", "-wal")]

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Remember, after a write by this process, what the files look like."""
        with forks.postponed, self._using:
            self.is_gone()
            before = self._looks
            try:
                with self._connection:
                    yield
            finally:
                seen = self._look()
                if [one and one[:2] for one in seen] != [one and one[:2] for one in before]:
                    self._is_spoiled = True
                self._looks = seen

    def append(self, requests: Sequence[Request]) -> None:
        """Add the requests, all in one commit; they are on disk when this returns.

        Raises:
            SpoolError: the disk is full or broken; `uncertain` if they may be on disk even so.

        """
        last: int | None = None
        try:
            with self._writing():
                if self._is_spoiled:
                    raise SpoolError(self._spoiled())
                for part in in_slices(requests):
                    added = self._connection.execute(_APPEND, (time.time(), _rows_of(part)))
                    last = added.lastrowid
            if self._is_spoiled:
                raise SpoolError(self._spoiled(), uncertain=True)
            if last is not None:
                self._acknowledged.note(last)
        except sqlite3.Error as error:
            message = f"the spool cannot be written: {_said(error)}"
            code = error.sqlite_errorcode & 0xFF
            raise SpoolError(
                message, full=code == sqlite3.SQLITE_FULL, uncertain=code not in _SURE_FAILURES
            ) from error

    def move_to(self, other: Spool) -> None:
        """Move all waiting requests to another file.

        Raises:
            SpoolError: some could not be moved; these stay in this file.

        """
        last = 0
        while found := self.oldest(_MOVED_AT_ONCE, _MOST_WAL_BYTES, last):
            other.append([request for _, request in found])
            last = found[-1][0]
            self.forget([number for number, _ in found], through=last)
        # Everything has moved: damage to this file loses nothing any more.
        self._acknowledged.note(0)

    def oldest(self, count: int, most_bytes: int, after: int = 0) -> list[tuple[int, Request]]:
        """Return the oldest requests whose number is above `after`, each with its number.

        Rows that the disk has changed are skipped and stay; so are rows of an unknown kind, perhaps
        written by a later version.

        Raises:
            SpoolError: the file cannot be read.

        """
        found: list[tuple[int, Request]] = []
        last = max(after, self._forgotten)
        while not found and (rows := self._rows(count, most_bytes, last)):
            last = rows[-1][0]
            for number, kind, first, second, payload, kept in rows:
                content = payload.encode(errors=_AS_BYTES)
                # None: written by an earlier version.
                if kept not in {None, checksum(kind.encode(errors=_AS_BYTES), content)}:
                    self._damaged.add(number)
                    continue
                try:
                    request = restored(kind, first, second, content)
                except KeyError:
                    self._unknown.add(number)
                else:
                    found.append((number, request))
        return found

    def _rows(
        self, count: int, most_bytes: int, after: int
    ) -> list[tuple[int, str, str, str, str, int | None]]:
        try:
            with forks.postponed, self._using:
                [text] = self._connection.execute(
                    self._oldest, (after, count, most_bytes)
                ).fetchone()
            return json.loads(text)
        except (sqlite3.Error, ValueError) as error:
            raise self._failure(error) from error

    def complaint(self) -> str | None:
        """Describe the rows that could not be read so far; None if there are none."""
        said: list[str] = []
        if self._unknown:
            said.append(f"{len(self._unknown)} row(s) of a kind that is not known here")
        if self._damaged:
            numbers = ", ".join(map(str, sorted(self._damaged)[:_MOST_NAMED]))
            more = ", ..." if len(self._damaged) > _MOST_NAMED else ""
            said.append(
                f"{len(self._damaged)} row(s) that the disk has changed (number {numbers}{more})"
            )
        return f"the spool file {self.path} keeps {' and '.join(said)}" if said else None

    def forget(self, numbers: Sequence[int], through: int = 0) -> None:
        """Remove these requests, and all up to the number `through`: they are in PostgreSQL.

        On a full disk they stay until the whole file can be removed.
        """
        # Skipped rows are never removed.
        passed_by = self._unknown | self._damaged
        self._forgotten = max(self._forgotten, min([through, *(n - 1 for n in passed_by)]))
        forgotten = "delete from requests where number in (select value from json_each(?))"
        try:
            with self._writing():
                self._connection.execute(forgotten, (json.dumps(numbers),))
        except sqlite3.Error as error:
            logger.debug("not removed from the spool yet: %s", _said(error))

    def is_empty(self) -> bool:
        """Return whether no request waits.

        Raises:
            SpoolError: the file cannot be read.

        """
        waiting = "select 1 from requests where number > ? limit 1"
        try:
            with forks.postponed, self._using:
                return self._connection.execute(waiting, (self._forgotten,)).fetchone() is None
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def shrink(self) -> None:
        """Return unused disk space to the file system; quick if no request waits."""
        try:
            with self._writing():
                self._connection.execute("vacuum")
                self._connection.execute("pragma wal_checkpoint(truncate)")
        except sqlite3.Error as error:
            logger.debug("the spool cannot be shrunk: %s", _said(error))

    def close(self) -> None:
        """Close the file: remove it if no request waits in it, else leave it to an adopter."""
        failure: Exception | None = None
        with forks.postponed, self._using:
            _open_spools.discard(self)
            try:
                # Do not remove a file that somebody put in its place.
                found = _look(str(self.path), whole=False)
                ours = found and self._looks[0] and found == self._looks[0][:2]
                empty = self.is_empty() and (ours or not os.path.lexists(self.path))
                self._connection.close()
                if empty:
                    _remove(self.path)
            except (SpoolError, sqlite3.Error, OSError) as error:
                failure = error
            finally:
                os.close(self._lock)
        if failure is not None:
            logger.error("the spool file %s stays as it is: %s", self.path, failure)

    def abandon(self) -> None:
        """Release the parent's file in a forked child: the lock must not outlive the parent."""
        # Never freed: on close, SQLite would checkpoint the parent's file.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        os.close(self._lock)  # closed and not unlocked: that would unlock the parent's

    def _spoiled(self) -> str:
        return f"the spool file {self.path} was removed, replaced or changed by somebody else"

    def _failure(self, error: Exception) -> SpoolError:
        said = _said(error) if isinstance(error, sqlite3.Error) else type(error).__name__
        return SpoolError(f"the spool file {self.path} cannot be used: {said}")


def spool_files(folder: Path) -> list[SpoolFile]:
    """Return the spool files of a folder and its subfolders, oldest first."""
    found: list[SpoolFile] = []
    for path in folder.rglob(f"*{SUFFIX}"):
        try:
            file = _examined(path)
        except FileNotFoundError:  # drained in the meantime
            path.with_suffix(".lock").unlink(missing_ok=True)  # created here to examine the file
        else:
            found.append(file)
    return sorted(found, key=lambda file: file.oldest or 0)


def _examined(path: Path) -> SpoolFile:
    if problem := _problem_of(path):
        return SpoolFile(path, None, path.lstat().st_size, None, owned=False, problem=problem)
    owned = _is_owned(path)
    size, count, oldest, damaged, missing = 0, None, None, 0, 0
    try:
        size = sum(part.lstat().st_size for part in path.parent.glob(f"{path.name}*"))
        noted = _noted(path)  # read before the file, which may be written to
        if noted and not path.lstat().st_size:  # else SQLite would remove the log
            return SpoolFile(path, None, size, None, owned=owned, missing=noted)
        with closing(read_only(path)) as file:
            missing = max(0, noted - highest_number(file))
            file.create_function("checksum_of", 2, checksum)
            waiting = _with_checksum(_WAITING, file)
            count, oldest, damaged = file.execute(waiting).fetchone()
    except sqlite3.Error as error:
        path.lstat()
        logger.debug("the spool file %s cannot be read: %s", path, _said(error))
    return SpoolFile(path, count, size, oldest, owned=owned, damaged=damaged, missing=missing)


def _noted(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError), path.with_suffix(".lock").open("rb") as lock:
        return Acknowledged(lock.fileno()).number
    return 0


def is_in_use(folder: SpoolFolder) -> bool:
    """Return whether a running process has a file there."""
    with contextlib.suppress(OSError, SpoolError):
        return any(_is_owned(path) for path in _files_in(folder) if not _problem_of(path))
    return False


def _is_owned(path: Path) -> bool:
    lock = _take_lock(path)
    if lock is not None:
        os.close(lock)
    return lock is None


def _files_in(folder: SpoolFolder) -> list[Path]:
    paths: list[Path] = []
    for place in folder.places():
        paths += sorted(path for path in place.iterdir() if path.suffix == SUFFIX)
    return paths


def _problem_of(path: Path) -> str | None:
    """Return why a file and those beside it may not be this user's alone; None if they are."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            if problem := file_problem(Path(f"{path}{suffix}")):
                return problem
    return None


def _look(path: str, *, whole: bool) -> tuple[int, ...] | None:
    """Return what identifies a file and, if `whole`, changes when the file is written to."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    same = (found.st_dev, found.st_ino)
    return (*same, found.st_size, found.st_mtime_ns) if whole else same


def _opened(path: Path, max_bytes: int | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    connection.text_factory = partial(str, encoding="utf-8", errors=_AS_BYTES)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute(f"pragma journal_size_limit = {_MOST_WAL_BYTES}")
        if max_bytes is not None:
            page_size = connection.execute("pragma page_size").fetchone()[0]
            connection.execute(f"pragma max_page_count = {max(16, max_bytes // page_size)}")
        connection.execute(
            "create table if not exists requests ("
            "number integer primary key autoincrement, spooled_at real not null,"
            " kind text not null, first text not null, second text not null, payload blob not null,"
            " checksum integer)"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _rows_of(requests: Sequence[Request]) -> str:
    forms = map(kept_form, requests)
    rows = [
        (kind, first, second, payload.decode(), checksum(kind.encode(), payload))
        for kind, first, second, payload in forms
    ]
    return json.dumps(rows, ensure_ascii=False)


def _with_checksum(statement: str, connection: sqlite3.Connection) -> str:
    """Return the statement for this file; one of an earlier version has no checksums."""
    columns = connection.execute("select name from pragma_table_info('requests')").fetchall()
    return statement.format(checksum="checksum" if ("checksum",) in columns else "null")


def _take_lock(path: Path) -> int | None:
    name = path.with_suffix(".lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(name, flags, 0o600)
    try:
        if problem := descriptor_problem(name, descriptor):
            raise SpoolError(problem)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)


def _said(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _abandon_after_fork() -> None:
    for spool in list(_open_spools):
        spool.abandon()
    _open_spools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
