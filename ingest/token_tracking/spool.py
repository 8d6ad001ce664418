"""What waits on local disk while PostgreSQL cannot answer: one SQLite file a process.

A folder belongs to one database, so that nothing ends in another one than it was meant for.
A file belongs to the process that holds the lock beside it. The lock goes with its process,
however that ends; then the file is an orphan that any other process adopts. A request may be in the
spool and in PostgreSQL at once: its key makes it one.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import sqlite3
import tempfile
import time
import weakref
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from . import forks
from .delivery import in_slices
from .errors import SpoolError
from .logs import SafeLogger
from .requests import Request, kept_form, restored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = SafeLogger(__name__)

_SUFFIX = ".sqlite"
_BUSY_SECONDS = 0.2  # only a person looks into the file, and the next batch gets another one
_MOST_WAL_BYTES = 16 * 2**20
_MOVED_AT_ONCE = 5000
_AS_BYTES = "surrogateescape"  # a byte that a disk changed harms its own row alone
# After these nothing was written; after any other error it is a question what a crash would leave.
_SURE_FAILURES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
}

# One statement a batch: each step of SQLite gives the interpreter away, and under load it takes
# milliseconds until it comes back.
_APPEND = """
    insert into requests (spooled_at, kind, first, second, payload)
    select
        ?, json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        cast(json_extract(value, '$[3]') as blob)
    from json_each(?)
    order by key
"""
_OLDEST = """
    select json_group_array(json_array(number, kind, first, second, cast(payload as text)))
    from (
        select
            number, kind, first, second, payload,
            sum(length(payload)) over (order by number) - length(payload) as size_before
        from (select * from requests where number > ? order by number limit ?)
        order by number
    )
    where size_before < ?
"""


def default_folder() -> Path:
    """Return the spool's folder where none is set: in the user's state folder."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "token-tracking" / "spool"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without name
        return Path(tempfile.gettempdir()) / f"token-tracking-{os.geteuid()}" / "spool"
    return home / ".local" / "state" / "token-tracking" / "spool"


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One file of a spool folder, as `status` found it; `requests` is None where none can tell."""

    path: Path
    requests: int | None
    bytes_on_disk: int
    oldest: float | None
    owned: bool


class Spool:
    """One file, appended to by its owner, drained by its owner or adopter; dead after a fork.

    Only `is_gone` may be asked by one thread while another one closes the file.
    """

    def __init__(self, path: Path, lock: int, max_bytes: int | None = None) -> None:
        self.path = path
        self._lock = lock
        self._forgotten = 0
        self._unreadable: set[int] = set()
        self._connection = _opened(path, max_bytes)
        _open_spools.add(self)

    @classmethod
    def create(cls, folder: Path, max_bytes: int) -> Spool:
        """Make a new file that this process owns.

        Raises:
            SpoolError: the folder cannot be made or written.

        """
        path = folder / f"{uuid4()}{_SUFFIX}"
        try:
            with forks.undivided:
                _make_durable_folder(folder)
                lock = _take_lock(path)
                assert lock is not None  # noqa: S101  # nobody else knows the name
                try:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
                    spool = cls(path, lock, max_bytes)
                    _sync_folder(folder)
                except BaseException:
                    _remove(path)
                    os.close(lock)
                    raise
        except (OSError, sqlite3.Error) as error:
            message = f"the spool folder {folder} cannot be used: {_said(error)}"
            raise SpoolError(message) from error
        return spool

    @classmethod
    def adopt(cls, folder: Path) -> Iterator[Spool]:
        """Take over each file whose process has ended, one after the other.

        Raises:
            SpoolError: the folder cannot be read; one that is not there holds nothing.

        """
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return
        except OSError as error:
            message = f"the spool folder {folder} cannot be used: {_said(error)}"
            raise SpoolError(message) from error
        for path in paths:
            try:
                with forks.undivided:
                    spool = cls._adopted(path)
            except (OSError, sqlite3.Error) as error:
                logger.error("the spool file %s cannot be read: %s", path, _said(error))
            else:
                if spool is not None:
                    yield spool

    @classmethod
    def _adopted(cls, path: Path) -> Spool | None:
        lock = _take_lock(path)
        if lock is None:
            return None
        try:
            if path.exists():
                return cls(path, lock)
            path.with_suffix(".lock").unlink(missing_ok=True)  # drained by another one in between
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        return None

    def is_gone(self) -> bool:
        """Say whether somebody took the file away: then it is read, and written, without a name."""
        return not os.path.exists(self.path)  # noqa: PTH110  # which raises nothing, unlike a Path's

    def append(self, requests: Sequence[Request]) -> None:
        """Add the requests, all in one commit; they are on disk when this returns.

        Raises:
            SpoolError: the disk is full or broken; `uncertain` where they may be on disk even so.

        """
        try:
            with forks.undivided:
                if self.is_gone():
                    message = "the spool's file is gone"
                    raise SpoolError(message)
                with self._connection:
                    for part in in_slices(requests):
                        self._connection.execute(_APPEND, (time.time(), _rows_of(part)))
        except sqlite3.Error as error:
            message = f"the spool cannot be written: {_said(error)}"
            code = error.sqlite_errorcode & 0xFF
            raise SpoolError(
                message, full=code == sqlite3.SQLITE_FULL, uncertain=code not in _SURE_FAILURES
            ) from error

    def move_to(self, other: Spool) -> None:
        """Move all that waits to another file.

        Raises:
            SpoolError: it is not, or not all of it; what is not stays here, too.

        """
        last = 0
        while found := self.oldest(_MOVED_AT_ONCE, _MOST_WAL_BYTES, last):
            other.append([request for _, request in found])
            last = found[-1][0]
            self.forget([number for number, _ in found], through=last)

    def oldest(self, count: int, most_bytes: int, after: int = 0) -> list[tuple[int, Request]]:
        """Return the requests that wait longest, of those after a number, each with its own.

        A row of a kind that is not known here, of a later version perhaps, is passed by and stays.

        Raises:
            SpoolError: the file cannot be read.

        """
        found: list[tuple[int, Request]] = []
        last = max(after, self._forgotten)
        while not found and (rows := self._rows(count, most_bytes, last)):
            last = rows[-1][0]
            for number, kind, first, second, payload in rows:
                try:
                    request = restored(kind, first, second, payload.encode(errors=_AS_BYTES))
                except KeyError:
                    self._unreadable.add(number)
                else:
                    found.append((number, request))
        return found

    def _rows(
        self, count: int, most_bytes: int, after: int
    ) -> list[tuple[int, str, str, str, str]]:
        try:
            with forks.undivided:
                [text] = self._connection.execute(_OLDEST, (after, count, most_bytes)).fetchone()
            return json.loads(text)
        except (sqlite3.Error, ValueError) as error:
            raise self._failure(error) from error

    def complaint(self) -> str | None:
        """Say what of the file could not be read so far, if anything."""
        if not self._unreadable:
            return None
        count = len(self._unreadable)
        return f"the spool file {self.path} keeps {count} row(s) of a kind that is not known here"

    def forget(self, numbers: Sequence[int], through: int = 0) -> None:
        """Remove these requests: they are in PostgreSQL, as is all up to the number `through`.

        On a full disk that waits until the file as a whole can go.
        """
        # Of what was passed by, nothing is forgotten.
        self._forgotten = max(self._forgotten, min([through, *(n - 1 for n in self._unreadable)]))
        forgotten = "delete from requests where number in (select value from json_each(?))"
        try:
            with forks.undivided, self._connection:
                self._connection.execute(forgotten, (json.dumps(numbers),))
        except sqlite3.Error as error:
            logger.debug("not removed from the spool yet: %s", _said(error))

    def is_empty(self) -> bool:
        """Say whether nothing waits.

        Raises:
            SpoolError: the file cannot be read.

        """
        waiting = "select 1 from requests where number > ? limit 1"
        try:
            with forks.undivided:
                return self._connection.execute(waiting, (self._forgotten,)).fetchone() is None
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def shrink(self) -> None:
        """Give the disk back what the file no longer needs; quick, where nothing waits in it."""
        try:
            with forks.undivided:
                self._connection.execute("vacuum")
                self._connection.execute("pragma wal_checkpoint(truncate)")
        except sqlite3.Error as error:
            logger.debug("the spool cannot be shrunk: %s", _said(error))

    def close(self) -> None:
        """Give the file up: remove it where nothing waits in it, else leave it to an adopter."""
        failure: Exception | None = None
        with forks.undivided:
            _open_spools.discard(self)
            try:
                empty = self.is_empty()
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
        """Let go of the parent's file in a forked child: the lock must not outlive the parent."""
        # Never freed: SQLite would tidy up the parent's file when it closes it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        os.close(self._lock)  # closed and not unlocked: that would unlock the parent's

    def _failure(self, error: Exception) -> SpoolError:
        said = _said(error) if isinstance(error, sqlite3.Error) else type(error).__name__
        return SpoolError(f"the spool file {self.path} cannot be used: {said}")


def spool_files(folder: Path) -> list[SpoolFile]:
    """Return what waits in a folder and in those below it, oldest file first."""
    found: list[SpoolFile] = []
    for path in folder.rglob(f"*{_SUFFIX}"):
        lock = _take_lock(path)
        if lock is not None:
            os.close(lock)
        size, count, oldest = 0, None, None
        try:
            size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as file:
                count, oldest = file.execute(
                    "select count(*), min(spooled_at) from requests"
                ).fetchone()
        except (sqlite3.Error, FileNotFoundError) as error:
            if not path.exists():  # it was drained in between
                path.with_suffix(".lock").unlink(missing_ok=True)  # ours, made to look at it
                continue
            logger.debug("the spool file %s cannot be read: %s", path, _said(error))
        found.append(SpoolFile(path, count, size, oldest, owned=lock is None))
    return sorted(found, key=lambda file: file.oldest or 0)


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
            " kind text not null, first text not null, second text not null, payload blob not null)"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _rows_of(requests: Sequence[Request]) -> str:
    forms = map(kept_form, requests)
    return json.dumps([(*form[:3], form[3].decode()) for form in forms], ensure_ascii=False)


def _take_lock(path: Path) -> int | None:
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)


def _make_durable_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    # A name must survive a crash of the machine as well as what is in the file.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _said(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


_open_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _abandon_after_fork() -> None:
    for spool in list(_open_spools):
        spool.abandon()
    _open_spools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
