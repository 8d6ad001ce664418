"""The folders of the spool: whose they are, which database they belong to, which disk they are on.

What lies in a folder is sent to a database. So a file counts only where nobody else can have
written it: a regular file of this process's user that others cannot write. New files are made only
in a folder of which the same is true. Names above such a folder can be in others' hands: that what
SQLite has opened is what was looked at is seen by its descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import SpoolError
from ..logs import SafeLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

logger = SafeLogger(__name__)

SUFFIX: Final = ".sqlite"
KEPT_SUFFIX: Final = ".damaged"
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_NOTE: Final = "database.json"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_DESCRIPTORS: Final = Path("/dev/fd")
# Other machines, or the host of a virtual one, may have the same files open.
_SHARED: Final = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "prl_fs", "fuse"),
    *("ceph", "lustre", "afs", "beegfs", "gpfs", "gfs2", "ocfs2", "orangefs"),
}


def default_base() -> Path:
    """Return the folder that holds one for each database: in the user's state folder."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "token-tracking" / "spool"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without name
        return Path(tempfile.gettempdir()) / f"token-tracking-{os.geteuid()}" / "spool"
    return home / ".local" / "state" / "token-tracking" / "spool"


@dataclass(frozen=True, slots=True)
class SpoolFolder:
    """Where the files for one database lie; `target` says which that is, for people.

    `base` is set for a folder of our own choice: it holds the folders of other databases, too.
    """

    path: Path
    target: str = ""
    base: Path | None = None

    @classmethod
    def of(cls, folder: Path | Self) -> Self:
        """Return a folder that somebody chose by its path alone, or the same."""
        return cls(folder) if isinstance(folder, Path) else folder

    def prepared(self) -> Path:
        """Return the folder for new files, made where it is missing, durably.

        A chosen folder that others can write, such as a volume, gets one of our own inside.

        Raises:
            SpoolError: it is in other hands.
            OSError: it cannot be made.

        """
        self._check_way()
        _make_durably(self.path)
        if self.base is not None:
            self._check_way()
            self._write_note({"target": self.target})
            return self.path
        if folder_problem(Path(os.path.realpath(self.path))) is None:
            return self.path
        own = self._own_part()
        _make_durably(own)
        _refuse(folder_problem(own))
        return own

    def places(self) -> list[Path]:
        """Return each folder in which files for the database can lie.

        Raises:
            SpoolError: one of them is in other hands.
            OSError: it cannot be looked at.

        """
        self._check_way()
        if not self.path.is_dir():
            if self.path.exists():
                _refuse(folder_problem(self.path))
            return []
        own = self._own_part()
        if self.base is not None or not os.path.lexists(own):
            return [self.path]
        _refuse(folder_problem(own))
        return [self.path, own]

    def holds_something(self) -> bool:
        """Say whether a file lies there."""
        with contextlib.suppress(OSError):
            return any(path.suffix in {SUFFIX, KEPT_SUFFIX} for path in self.path.iterdir())
        return False

    def _own_part(self) -> Path:
        return self.path / f"token-tracking-{os.geteuid()}"

    def _check_way(self) -> None:
        if self.base is None:
            # A link that is somebody's choice is followed, but only where it is ours or root's.
            with contextlib.suppress(FileNotFoundError):
                found = self.path.lstat()
                if stat.S_ISLNK(found.st_mode) and found.st_uid not in {0, os.geteuid()}:
                    _refuse(f"{self.path} is a symbolic link of user {found.st_uid}")
            return
        for folder in (self.base.parent, self.base, self.path):
            _tighten(folder)
            if os.path.lexists(folder):
                _refuse(folder_problem(folder))

    # Which database it is.

    def note(self) -> tuple[str, str, int]:
        """Return the target, the database's identity and the transaction that it had reached."""
        path = self.path / _NOTE
        try:
            if file_problem(path) is None:
                kept = json.loads(path.read_bytes())
                return str(kept["target"]), str(kept["identity"]), int(kept["transaction"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("no note of a database in %s: %s", self.path, type(error).__name__)
        return self.target, "", 0

    def belongs_to(self, identity: str, transaction: int) -> None:
        """Note which database the folder's events are for, so that they find it by other ways.

        A folder that somebody chose is for one database by that choice, and gets no note.
        """
        if self.base is None:
            return
        try:
            self._check_way()
            _make_durably(self.path)
            self._check_way()
            self._write_note(
                {"target": self.target, "identity": identity, "transaction": transaction}
            )
        except (SpoolError, OSError) as error:
            logger.debug("no note of the database can be written: %s", type(error).__name__)

    def _write_note(self, told: dict[str, object]) -> None:
        target, identity, transaction = self.note()
        known = {"target": target, "identity": identity, "transaction": transaction}
        if known == known | told and (self.path / _NOTE).exists():
            return
        descriptor, name = tempfile.mkstemp(prefix=".note-", dir=self.path)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(known | told, file)
            Path(name).replace(self.path / _NOTE)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def others(self) -> Iterator[SpoolFolder]:
        """Yield the folders beside it that hold something, for whatever database."""
        if self.base is None:
            return
        with contextlib.suppress(OSError, SpoolError):
            self._check_way()
            for path in sorted(self.base.iterdir()):
                other = SpoolFolder(path, base=self.base)
                if path != self.path and folder_problem(path) is None and other.holds_something():
                    yield SpoolFolder(path, other.note()[0], self.base)

    def of_same_database(self, identity: str, transaction: int) -> Iterator[SpoolFolder]:
        """Yield the other folders whose events are for this database, by another way to it.

        A copy of the database has its identity, too. One that is behind what the folder's own
        database had reached is such a copy, or a standby that lost something: both are left to a
        person.
        """
        for other in self.others():
            _, known, reached = other.note()
            if identity and known == identity and reached <= transaction:
                yield other


def folder_problem(path: Path) -> str | None:
    """Say why nothing can be kept in a folder; None where this user alone can write there."""
    return _problem(path, path.lstat(), stat.S_ISDIR, "folder")


def file_problem(path: Path) -> str | None:
    """Say why a file is not to be trusted; None where only this user can have written it.

    Raises:
        FileNotFoundError: it is not there.

    """
    return _problem(path, path.lstat(), stat.S_ISREG, "regular file")


def descriptor_problem(path: Path, descriptor: int) -> str | None:
    """Do as `file_problem` for what was opened by that name."""
    return _problem(path, os.fstat(descriptor), stat.S_ISREG, "regular file")


def _problem(
    path: Path, found: os.stat_result, is_kind: Callable[[int], bool], kind: str
) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a symbolic link, which the spool does not follow"
    if not is_kind(found.st_mode):
        return f"{path} is not a {kind}"
    if found.st_uid != os.geteuid():
        return (
            f"{path} belongs to user {found.st_uid}; "
            f"the spool takes only what belongs to user {os.geteuid()}, who runs this process"
        )
    if found.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        return f"{path} can be written by others (mode {mode:04o}): chmod go-w {path}"
    return None


def is_open(*paths: Path) -> bool:
    """Say whether this process has open what these names lead to; True where none can tell."""
    missing: set[tuple[int, int]] = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            missing.add((found.st_dev, found.st_ino))
    try:
        descriptors = list(_DESCRIPTORS.iterdir())
    except OSError:
        return True
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            found = os.fstat(int(descriptor.name))
            missing.discard((found.st_dev, found.st_ino))
        if not missing:
            return True
    return False


def shared_file_system(path: Path) -> tuple[str, str] | None:
    """Return type and options of the file system where other machines can reach it."""
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = Path(os.path.realpath(path))
    best, found = -1, ("", "")
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if place.is_relative_to(point) and len(point) >= best:
            kind, *_, options = after.split()
            best, found = len(point), (kind, options)
    kind = found[0]
    return found if kind in _SHARED or kind.startswith("fuse.") else None


@cache
def this_machine() -> str:
    """Return what names this run of this machine: no lock outlives it, and all see one another."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _same_machine(name: str) -> bool:
    # Containers of one machine differ in their host name alone, and share its locks.
    boot = name.rpartition(" ")[2]
    return bool(boot) and boot == this_machine().rpartition(" ")[2]


def foreign_lock(path: Path, written: str) -> str | None:
    """Say why a lock that could be taken is no proof that its process has ended; None if it is.

    On a disk of this machine the kernel knows. On a shared one the lock of another machine may not
    be seen here: Linux tells for NFS alone whether it is.
    """
    shared = shared_file_system(path)
    if shared is None or not written or _same_machine(written):
        return None
    kind, options = shared
    if kind.startswith("nfs") and "local_lock=none" in options.split(","):
        return None
    host = written.partition(" ")[0]
    return (
        f"{path} was written on the host {host}, and {kind} does not tell whether its process has "
        f"ended: run token-tracking spool flush there, or move the file to a local disk first"
    )


def warn_of_shared(path: Path) -> None:
    """Log, once, that a folder is on a file system where SQLite and locks promise less."""
    shared = shared_file_system(path)
    if shared is not None:
        tell_once(
            f"the spool folder {path} is on a file system of type {shared[0]}, which other "
            "machines can share: what waits there is as safe as its server; set "
            "TOKEN_TRACKING_SPOOL_DIR to a folder on a local disk, one for each host"
        )


_told: set[str] = set()


def tell_once(message: str) -> None:
    """Log what a person should act on, however often it is found."""
    if message not in _told:
        _told.add(message)
        logger.error("%s", message)


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise SpoolError(problem)


def _tighten(folder: Path) -> None:
    """Take from others what a umask gave them of a folder that we made."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
                os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)


def _make_durably(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        sync_folder(parent.parent)
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder))


def sync_folder(folder: Path) -> None:
    """Let names in a folder survive a crash of the machine, as what is in the files does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
