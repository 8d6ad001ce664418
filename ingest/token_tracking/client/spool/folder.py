"""The spool's folders: their owner, the database that they belong to, the disk that they are on.

The files in a folder are sent to a database. So a file is used only if no other user can have
written it: a regular file that belongs to this process's user and that others cannot write. New
files are created only in a folder of the same kind. Other users may control the folders above it:
so the descriptors of the files that SQLite opened must show that these are the checked ones.
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
# File systems on which other machines, or a virtual machine's host, may have the same files open.
_SHARED: Final = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "prl_fs", "fuse"),
    *("ceph", "lustre", "afs", "beegfs", "gpfs", "gfs2", "ocfs2", "orangefs"),
}


def default_base() -> Path:
    """Return the parent folder of the databases' folders, in the user's state folder."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "token-tracking" / "spool"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user may have no name
        return Path(tempfile.gettempdir()) / f"token-tracking-{os.geteuid()}" / "spool"
    return home / ".local" / "state" / "token-tracking" / "spool"


@dataclass(frozen=True, slots=True)
class SpoolFolder:
    """The folder of the spool files for one database; `target` describes the database to people.

    `base` is set for a default folder: it also holds the folders of other databases.
    """

    path: Path
    target: str = ""
    base: Path | None = None

    @classmethod
    def of(cls, folder: Path | Self) -> Self:
        """Return a user-chosen path as a folder; a `SpoolFolder` as it is."""
        return cls(folder) if isinstance(folder, Path) else folder

    def prepared(self) -> Path:
        """Return the folder for new files; create it durably if it is missing.

        If others can write to a chosen folder, such as a volume, a private subfolder is used.

        Raises:
            SpoolError: another user owns it or can write to it.
            OSError: it cannot be created.

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
        """Return each folder that may hold files for the database.

        Raises:
            SpoolError: another user owns one of them or can write to it.
            OSError: a folder cannot be examined.

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
        """Return whether the folder holds a spool file."""
        with contextlib.suppress(OSError):
            return any(path.suffix in {SUFFIX, KEPT_SUFFIX} for path in self.path.iterdir())
        return False

    def _own_part(self) -> Path:
        return self.path / f"token-tracking-{os.geteuid()}"

    def _check_way(self) -> None:
        if self.base is None:
            # Follow a symbolic link only if this user or root owns it.
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
        """Return the target, the database's identity and its last known transaction counter."""
        path = self.path / _NOTE
        try:
            if file_problem(path) is None:
                kept = json.loads(path.read_bytes())
                return str(kept["target"]), str(kept["identity"]), int(kept["transaction"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("no note of a database in %s: %s", self.path, type(error).__name__)
        return self.target, "", 0

    def belongs_to(self, identity: str, transaction: int) -> None:
        """Record which database the folder belongs to, so that another DSN for it finds the events.

        A user-chosen folder is for one database by that choice, so nothing is recorded in it.
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
        """Yield the sibling folders that hold spool files, for any database."""
        if self.base is None:
            return
        with contextlib.suppress(OSError, SpoolError):
            self._check_way()
            for path in sorted(self.base.iterdir()):
                other = SpoolFolder(path, base=self.base)
                if path != self.path and folder_problem(path) is None and other.holds_something():
                    yield SpoolFolder(path, other.note()[0], self.base)

    def of_same_database(self, identity: str, transaction: int) -> Iterator[SpoolFolder]:
        """Yield the other folders whose events are for this database under another DSN.

        A copy of the database has the same identity. If its transaction counter is behind the one
        recorded in the folder, it is such a copy, or a standby that lost transactions: both cases
        are left to a person.
        """
        for other in self.others():
            _, known, reached = other.note()
            if identity and known == identity and reached <= transaction:
                yield other


def folder_problem(path: Path) -> str | None:
    """Return why a folder must not hold spool files; None if only this user can write there."""
    return _problem(path, path.lstat(), stat.S_ISDIR, "folder")


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be trusted; None if only this user can have written it.

    Raises:
        FileNotFoundError: the file does not exist.

    """
    return _problem(path, path.lstat(), stat.S_ISREG, "regular file")


def descriptor_problem(path: Path, descriptor: int) -> str | None:
    """Check like `file_problem`, but the open file instead of its path."""
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
    """Return whether this process has the files of these paths open; True if that is unknown."""
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
    """Return the file system's type and options if other machines can reach it, else None."""
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
    """Return an id of this boot of this machine: its processes see each other's locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _same_machine(name: str) -> bool:
    # Containers of one machine share its locks and differ only in their host name.
    boot = name.rpartition(" ")[2]
    return bool(boot) and boot == this_machine().rpartition(" ")[2]


def foreign_lock(path: Path, written: str) -> str | None:
    """Return why taking a lock does not prove that its process has ended; None if it does.

    On a local disk the kernel knows all locks. On a shared file system, another machine's lock may
    be invisible here: Linux tells only for NFS whether it is.
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
    """Log once that a folder is on a file system with weaker guarantees for SQLite and locks."""
    shared = shared_file_system(path)
    if shared is not None:
        tell_once(
            f"the spool folder {path} is on a file system of type {shared[0]}, which other "
            "machines can share: what waits there is as safe as its server; set "
            "TOKEN_TRACKING_SPOOL_DIR to a folder on a local disk, one for each host"
        )


_told: set[str] = set()


def tell_once(message: str) -> None:
    """Log once a problem that a person should act on, however often it is found."""
    if message not in _told:
        _told.add(message)
        logger.error("%s", message)


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise SpoolError(problem)


def _tighten(folder: Path) -> None:
    """Remove the permissions that a permissive umask gave to others on a new folder."""
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
    """Sync a folder, so that the names in it survive a crash of the machine like the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
