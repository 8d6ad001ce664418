"""The spool's folders and files: their owner, their database, and changes by others."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest

import token_tracking
from tests.client.test_spool import until
from tests.support.arena import become_folder, link_to_copy
from tests.support.databases import Database, emptied_database
from tests.support.proxy import Proxy, socket_path
from tests.support.spooled import left_behind, spool_command
from tests.support.spooled import request as event
from token_tracking import UsageTracker
from token_tracking.client.spool.folder import SpoolFolder, this_machine
from token_tracking.client.spool.spool import Spool, spool_files
from token_tracking.errors import SettingsError, SpoolError
from token_tracking.target import Target

KEYS = "select idempotency_key from token_tracking_raw.usage_events order by 1"
STRANGER, SERVICE = 2001, 3333


def waiting(folder: Path) -> set[str]:
    """Return the keys that a process finds there after its writers have crashed."""
    found: set[str] = set()
    for path in folder.glob("*.sqlite"):
        if path.is_file() and not path.is_symlink():
            with closing(sqlite3.connect(path)) as connection:
                rows = connection.execute("select name from sqlite_master").fetchall()
                if rows:
                    found |= {k for (k,) in connection.execute("select second from requests")}
    return found


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def become_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


def wal(path: Path) -> Path:
    return Path(f"{path}-wal")


CHANGES: dict[str, Callable[[Path], object]] = {
    "log removed": lambda path: wal(path).unlink(),
    "log cut to nothing": lambda path: os.truncate(wal(path), 0),
    "log cut in two": lambda path: os.truncate(wal(path), wal(path).stat().st_size // 2),
    "one bit of the log flipped": lambda path: flip(wal(path)),
    "file removed": lambda path: path.unlink(),
    "file cut": lambda path: os.truncate(path, 0),
    "one bit of the file flipped": flip,
    "a link in its place": link_to_copy,
    "a folder in its place": become_folder,
    "a copy in its place": become_copy,
    "the folder moved": lambda path: path.parent.rename(path.parent.with_name("moved")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_spool_file_is_left_for_a_new_one(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """After a crash, the files hold everything that was acknowledged before and after."""
    folder = tmp_path / "spool"
    with UsageTracker(dsn="host=/nonexistent", max_wait=5, spool_dir=folder) as service:
        for number in range(50):
            assert service.track_token_usage_sync("a", 1, idempotency_key=f"before-{number:02}")
        [path] = folder.glob("*.sqlite")
        CHANGES[change](path)
        for number in range(50):
            assert service.track_token_usage_sync("a", 1, idempotency_key=f"later-{number:02}")
        shutil.copytree(folder, tmp_path / "left", symlinks=True)
        assert len(list(folder.glob("*.sqlite"))) <= 2
    found = waiting(tmp_path / "left")
    assert sorted(found) == [f"{when}-{n:02}" for when in ("before", "later") for n in range(50)]
    assert caplog.text.count("removed, replaced or changed by somebody else") == 1
    assert str(path) in caplog.text


def test_what_others_put_in_its_place_is_not_removed(tmp_path: Path):
    spool = Spool.create(tmp_path, 2**30)
    become_folder(spool.path)
    spool.close()
    assert spool.path.is_dir()


def test_one_who_only_looks_changes_nothing(tmp_path: Path):
    spool = Spool.create(tmp_path, 2**30)
    for number in range(3):
        spool.append([event(f"{number}")])
        assert [(file.requests, file.owned) for file in spool_files(tmp_path)] == [
            (number + 1, True)
        ]
        for path in tmp_path.iterdir():
            path.read_bytes() if path.suffix != ".lock" else None
        spool.forget([])
        spool.shrink()
    assert not spool.is_gone()
    spool.close()


# Folders and files of other users.


# Import everything now: the other user may have no access to the package's folder.
BECOME = """
import asyncio, encodings.idna, importlib, json, os, sys
import psycopg, pydantic, token_tracking
for module in ("client.connection", "target", "client.recovery", "client.spool.spool", "default"):
    importlib.import_module(f"token_tracking.{module}")
from token_tracking.client.settings import load_settings
load_settings(dsn="host=x")
os.umask(0o022)
os.setgroups([])
os.setgid(UID)
os.setuid(UID)
os.chdir("/")
"""


def as_user(uid: int, script: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BECOME.replace("UID", str(uid)) + script, *arguments],
        env={"PYTHONPATH": ":".join(sys.path), **env},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder like /tmp, and another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be other users")
    place = Path(tempfile.mkdtemp(prefix="tt-"))
    try:
        place.chmod(0o1777)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


FORGE = """
import os, sys
from pathlib import Path
from token_tracking.client.requests import EventRequest
from token_tracking.client.spool.spool import Spool
place = Path(sys.argv[1])
spool = Spool.create(Path(sys.argv[2]), 2**30)
payload = b'{"tenant_id": "a", "idempotency_key": "forged", "tokens": 1000000000}'
spool.append([EventRequest(("a", "forged"), payload)])
spool.close()
place.mkdir(parents=True, exist_ok=True)
for path in Path(sys.argv[2]).iterdir():
    path.chmod(0o666)
    path.rename(place / path.name)
for folder in sys.argv[3:]:
    os.chmod(folder, 0o777)
"""
CALL = """
import sys, time
from token_tracking import UsageTracker
given = []
with UsageTracker(max_wait=2, fallback=lambda **call: given.append(call) or True) as tracker:
    answer = tracker.track_token_usage_sync("a", 1, idempotency_key=sys.argv[1])
    time.sleep(0.5)
print(answer, len(given), tracker.stats().spooled)
"""


def test_a_strangers_spool_is_neither_taken_nor_sent(emptied: Database, open_place: Path):
    """The place of last resort has a predictable name."""
    proxy = Proxy(socket_path(emptied.env["PGHOST"]))
    dsn = proxy.dsn(emptied.env["PGDATABASE"])
    top = open_place / f"token-tracking-{SERVICE}"
    folder = top / "spool" / Target.of(dsn).folder_name
    made = str(open_place / "made")
    as_user(STRANGER, FORGE, str(folder), made, *map(str, (top, top / "spool", folder)))
    where = {"TMPDIR": str(open_place), "TOKEN_TRACKING_DSN": dsn}
    said = as_user(SERVICE, CALL, "own", **where)
    assert said.startswith("True 0 0\n")
    rule = f"{top} belongs to user {STRANGER}; the spool takes only what belongs to user {SERVICE}"
    assert said.count(rule) == 1
    assert emptied.rows(KEYS) == [("own",)]
    # And where the database is away, the fallback takes over.
    proxy.refusing = True
    proxy.cut()
    said = as_user(SERVICE, CALL, "away", **where)
    assert said.startswith("True 1 0\n")
    assert rule in said
    assert emptied.rows(KEYS) == [("own",)]
    # If no other user was first, it is created for this user only.
    shutil.rmtree(top)
    assert as_user(SERVICE, CALL, "spooled", **where).startswith("True 0 1\n")
    assert {path.stat().st_mode & 0o777 for path in (top, top / "spool", folder)} == {0o700}
    proxy.refusing = False
    as_user(SERVICE, CALL, "next", **where)
    assert emptied.rows(KEYS) == [("next",), ("own",), ("spooled",)]
    proxy.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_in_a_shared_volume_each_user_has_a_part(emptied: Database, open_place: Path, mode: int):
    """Like a container's volume that belongs to root: own files are used, others' are not sent."""
    volume = open_place / "volume"
    volume.mkdir()
    volume.chmod(mode)
    as_user(STRANGER, FORGE, str(volume), str(open_place / "made"))
    old = Spool.create(volume / "older", 2**30)
    old.append([event("of the version before")])
    old.close()
    for path in (volume / "older").iterdir():
        os.chown(path, SERVICE, SERVICE)
        path.rename(volume / path.name)
    proxy = Proxy(socket_path(emptied.env["PGHOST"]))
    proxy.refusing = True
    where = {
        "TOKEN_TRACKING_DSN": proxy.dsn(emptied.env["PGDATABASE"]),
        "TOKEN_TRACKING_SPOOL_DIR": str(volume),
    }
    assert as_user(SERVICE, CALL, "spooled", **where).startswith("True 0 1\n")
    part = volume / f"token-tracking-{SERVICE}"
    assert len(list(part.glob("*.sqlite"))) == 1
    assert (part.stat().st_uid, part.stat().st_mode & 0o777) == (SERVICE, 0o700)
    proxy.refusing = False
    said = as_user(SERVICE, CALL, "next", **where)
    assert f"belongs to user {STRANGER}" in said
    assert emptied.rows(KEYS) == [("next",), ("of the version before",), ("spooled",)]
    proxy.close()


def test_root_sends_nothing_of_others(emptied: Database, tmp_path: Path):
    folder = tmp_path / "spool"
    left_behind(folder, 3)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in folder.iterdir():
        os.chown(path, SERVICE, SERVICE)
    flushed = spool_command(emptied.url, folder, "flush")
    assert flushed.stdout == "nothing to flush\n"
    assert f"belongs to user {SERVICE}" in flushed.stderr
    shown = spool_command(emptied.url, folder, "status")
    assert "somebody else" in shown.stdout
    assert f"belongs to user {SERVICE}" in shown.stderr


@pytest.mark.parametrize("kind", ["others write it", "a link", "its lock is a link"])
def test_what_others_could_have_written_is_not_sent(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "spool"
    left_behind(folder, 3)
    [path] = folder.glob("*.sqlite")
    if kind == "others write it":
        path.chmod(0o666)
    elif kind == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.with_suffix(".lock").unlink()
        path.with_suffix(".lock").symlink_to(tmp_path / "made")
    for _ in range(3):
        assert list(Spool.adopt(folder)) == []
    assert caplog.text.count(str(path)) <= 2
    assert "not sent" in caplog.text or "cannot be read" in caplog.text
    assert not (tmp_path / "made").exists()


def test_a_folder_of_our_own_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where an earlier version left it to the umask; a link there is refused."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    base = tmp_path / "token-tracking" / "spool"
    base.mkdir(parents=True)
    for folder in (base.parent, base):
        folder.chmod(0o775)
    ours = SpoolFolder(base / "x", base=base)
    Spool.create(ours, 2**30).close()
    assert {folder.stat().st_mode & 0o777 for folder in (base.parent, base, base / "x")} == {0o700}
    (base / "y").symlink_to(base / "x")
    with pytest.raises(SpoolError, match="is a symbolic link"):
        Spool.create(SpoolFolder(base / "y", base=base), 2**30)


def test_a_file_swapped_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Swapped by a user who may rename the folder: SQLite opens files by name."""
    left_behind(tmp_path / "forged", 1)
    [forged] = (tmp_path / "forged").glob("*.sqlite")
    left_behind(tmp_path / "spool", 2)
    [path] = (tmp_path / "spool").glob("*.sqlite")
    real = sqlite3.connect

    def swapped(place: Path, **options: object) -> sqlite3.Connection:
        return real(forged if place == path else place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("token_tracking.client.spool.spool.sqlite3.connect", swapped)
    assert list(Spool.adopt(tmp_path / "spool")) == []


# Which database.


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql+asyncpg://u:canary@h/db", "postgresql://"),
        ("'postgresql://u:canary@h/db'", "quotation mark"),
        ("postgresql://u:canary@h/db?pool_size=5", '"pool_size"'),
        ("host=h password=my canary", 'missing "="'),
        ("postgresql://u:canary%zz@h/db", "percent-encoded"),
        ("postgresql://u:c%00anary@h/db", "libpq cannot read it"),
    ],
)
def test_an_unreadable_connection_string_is_told_at_once(
    dsn: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(SettingsError, match=r"setting dsn \(TOKEN_TRACKING_DSN\)") as raised:
        UsageTracker(dsn=dsn)
    assert said in str(raised.value)
    monkeypatch.setenv("TOKEN_TRACKING_DSN", dsn)
    monkeypatch.setattr("token_tracking.default._default", {})
    assert token_tracking.track_token_usage_sync("a", 1) is False
    assert f"usage is not recorded: {raised.value}" in caplog.text
    assert "anary" not in caplog.text + str(raised.value)


def test_space_around_a_connection_string_is_no_part_of_it(
    emptied: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOKEN_TRACKING_DSN", f" {emptied.url}\n")
    with UsageTracker() as service:
        assert service.track_token_usage_sync("a", 1) is True
        assert service.stats().recorded == 1
    assert Target.of() == Target.of(emptied.url)


def test_the_log_says_what_libpq_says(caplog: pytest.LogCaptureFixture, emptied: Database):
    for dsn, said in (
        ("host=/nonexistent password=canary", "No such file or directory"),
        (emptied.url.replace("postgres@", "nobody:canary@"), 'role "nobody" does not exist'),
    ):
        with UsageTracker(dsn=dsn, max_wait=0.5) as service:
            assert service.track_token_usage_sync("a", 1) is True
        assert said in caplog.text
    assert "canary" not in caplog.text


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default place: one folder per connection target."""
    monkeypatch.delenv("TOKEN_TRACKING_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("token_tracking.client.recovery._LOOK_SECONDS", 0.1)
    return tmp_path / "token-tracking" / "spool"


def left_by_another_way(database: Database) -> Path:
    """Spool an event under a connection target that has worked once; return its folder."""
    proxy = Proxy(socket_path(database.env["PGHOST"]))
    dsn = proxy.dsn(database.env["PGDATABASE"])
    with UsageTracker(dsn=dsn, max_wait=2) as service:
        assert service.track_token_usage_sync("a", 1, idempotency_key="known") is True
        proxy.refusing = True
        proxy.cut()
        assert service.track_token_usage_sync("a", 1, idempotency_key="waits") is True
        assert service.stats().spooled == 1
    proxy.close()
    return service.spool_folder()


def test_what_waits_is_sent_by_any_way_to_its_database(emptied: Database, state: Path):
    folder = left_by_another_way(emptied)
    assert len(spool_files(folder)) == 1
    with UsageTracker(dsn=emptied.url) as service:
        assert service.track_token_usage_sync("a", 1, idempotency_key="new") is True
        assert service.spool_folder() != folder
        until(lambda: emptied.rows(KEYS) == [("known",), ("new",), ("waits",)])
    until(lambda: spool_files(state) == [])


@pytest.mark.parametrize("reason", ["another database", "a copy that is behind", "in use"])
def test_what_waits_is_sent_to_no_other_database(emptied: Database, state: Path, reason: str):
    """Nor to a copy that is behind the folder's database; nor taken from a running process."""
    folder = left_by_another_way(emptied)
    note = folder / "database.json"
    told = json.loads(note.read_text())
    if reason == "another database":
        told["identity"] = told["identity"].replace("/", "1/", 1)
    elif reason == "a copy that is behind":
        told["transaction"] += 10**6
    note.write_text(json.dumps(told))
    used = Spool.create(SpoolFolder(folder, base=state), 2**30) if reason == "in use" else None
    with UsageTracker(dsn=emptied.url) as service:
        for number in range(10):
            assert service.track_token_usage_sync("a", 1, idempotency_key=f"{number}") is True
        until(lambda: service.stats().recorded == 10)
        flushed = spool_command(emptied.url, state, "flush", **places(state))
        assert flushed.stdout == "nothing to flush\n"
    assert ("waits",) not in emptied.rows(KEYS)
    assert spool_files(folder)[-1].requests == 1
    if used is not None:
        used.close()


def places(state: Path) -> dict[str, str]:
    return {"TOKEN_TRACKING_SPOOL_DIR": "", "XDG_STATE_HOME": str(state.parent.parent)}


def test_status_shows_every_folder_and_flush_sends_the_named(
    emptied: Database, state: Path, caplog: pytest.LogCaptureFixture
):
    """Including what an earlier version left for a string that it could not parse."""
    left_behind(state / "unreadable-dsn", 3)
    left_behind(state / "old-12345678", 2)
    with UsageTracker(dsn="host=/nonexistent dbname=away", max_wait=0.3) as service:
        assert service.track_token_usage_sync("a", 1) is True
    with UsageTracker(dsn=emptied.url):
        until(lambda: "unreadable-dsn is for a database that is not known" in caplog.text)
    shown = spool_command(emptied.url, state, "status", **places(state))
    assert shown.returncode == 0, shown.stderr
    assert "nothing waits for this database" in shown.stdout
    lines = {line.split()[1]: line for line in shown.stdout.splitlines() if "spool flush" in line}
    assert " 3 " in lines["unreadable-dsn"]
    assert "an unknown database" in lines["unreadable-dsn"]
    assert "database away at /nonexistent" in shown.stdout
    flushed = spool_command(emptied.url, state, "flush", **places(state))
    assert flushed.stdout == "nothing to flush\n"
    assert flushed.stderr.count("see token-tracking spool status") == 3
    flushed = spool_command(emptied.url, state, "flush", "unreadable-dsn", **places(state))
    assert flushed.stdout == "flushed: 3 recorded\n"
    assert flushed.returncode == 0
    assert len(spool_files(state)) == 2
    wrong = spool_command(emptied.url, state, "flush", "nowhere/at/all", **places(state))
    assert wrong.returncode == 2


def test_a_plain_login_learns_which_database_it_is(server):
    database = emptied_database(server)
    with closing(database.connect()) as connection:
        connection.execute("drop role if exists spool_plain")
        connection.execute("create role spool_plain login")
        try:
            from token_tracking.client.connection import Connection

            url = database.url.replace("postgres@", "spool_plain@")
            with (
                closing(Connection.open(url)) as plain,
                closing(Connection.open(database.url)) as o,
            ):
                assert plain.identity()[0] == o.identity()[0] != ""
            with closing(Connection.open(server.url("postgres"))) as other:
                assert other.identity()[0] != plain_identity(database)
        finally:
            connection.execute("drop role spool_plain")


def plain_identity(database: Database) -> str:
    with closing(psycopg.connect(database.url)) as connection:
        [row] = connection.execute(
            "select format('%s/%s/%s', system_identifier, oid, datname)"
            " from pg_control_system(), pg_database where datname = current_database()"
        ).fetchall()
    return str(row[0])


# A disk that is shared with other machines.


@pytest.mark.parametrize(
    ("kind", "options", "sent"),
    [
        ("ext4", "rw", True),
        ("nfs4", "rw,local_lock=none", True),
        ("nfs", "rw,nolock,local_lock=all", False),
        ("cifs", "rw", False),
        ("fuse.sshfs", "rw", False),
    ],
)
def test_another_hosts_lock_is_taken_only_where_it_is_seen(
    kind: str,
    options: str,
    sent: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    mounts = tmp_path / "mounts"
    place = tmp_path / "a disk"
    point = str(place).replace(" ", r"\040")
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n" + f"2 1 0:9 / {point} rw - {kind} it {options}\n"
    )
    monkeypatch.setattr("token_tracking.client.spool.folder._MOUNTS", mounts)
    spool = Spool.create(place, 2**30)
    spool.append([event("1")])
    lock = spool.path.with_suffix(".lock")
    spool.close()
    warned = "other machines can share" in caplog.text
    assert warned is (kind != "ext4")
    lock.write_text("another-host 00000000-0000-0000-0000-000000000000")
    found = list(Spool.adopt(place))
    assert len(found) == sent
    assert ("another-host" in caplog.text) is not sent
    for one in found:
        one.close()
    # A lock of this machine can always be taken, and so can an empty one of the previous version.
    lock.write_text("")
    [one] = Spool.adopt(place)
    one.close()


# Damage by the disk after the process had ended.

# The previous version had neither a number in the lock nor checksums.
OLD_TABLE = (
    "create table if not exists requests ("
    "number integer primary key autoincrement, spooled_at real not null,"
    " kind text not null, first text not null, second text not null, payload blob not null)"
)
OLD_APPEND = (
    "insert into requests (spooled_at, kind, first, second, payload)"
    " values (1, 'event', 'a', ?, cast(? as blob))"
)
OLD_OLDEST = "select number, kind, first, second, cast(payload as text) from requests"
APPENDING = """
import os, signal, sys
from pathlib import Path
from token_tracking.client.requests import EventRequest
from token_tracking.client.spool.spool import Spool
spool = Spool.create(Path(sys.argv[1]), 2**30)
number = 0
while number != int(sys.argv[2]):
    number += 1
    payload = f'{{"tenant_id": "a", "idempotency_key": "{number}", "tokens": {1000 + number}}}'
    spool.append([EventRequest(("a", str(number)), payload.encode())])
    os.write(1, b"%d\\n" % number)
os.kill(os.getpid(), signal.SIGKILL)
"""
ACKNOWLEDGED = 150


def killed_while_appending(folder: Path, count: int, after: float | None = None) -> int:
    """Return how many appends were acknowledged to a process before it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(folder), str(count)],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        if after is not None:
            time.sleep(after)
            process.kill()
        # Not `communicate`, which misses what `readline` has already buffered.
        told += process.stdout.read()
        process.wait(60)
    return len(told.splitlines())


def zero(path: Path, place: float) -> None:
    at = int(path.stat().st_size * place) // 4096 * 4096
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(4096))


def flip_at(path: Path, place: float) -> None:
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * place))
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{
        f"{what} at {place}": partial(change, place=place)
        for what, change in (("a bit flipped", flip_at), ("a page zeroed", zero))
        for place in (0, 0.01, 0.3, 0.6, 0.97)
    },
    "cut to nothing": lambda log: os.truncate(log, 0),
    "cut in two": lambda log: os.truncate(log, log.stat().st_size // 2),
    "its last byte cut": lambda log: os.truncate(log, log.stat().st_size - 1),
    "removed": lambda log: log.unlink(),
    "the file before it cut to nothing": lambda log: os.truncate(str(log).removesuffix("-wal"), 0),
}
TOKENS = "select idempotency_key::int, tokens::int from token_tracking_raw.usage_events"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_log_damaged_after_its_process_is_kept_and_told(
    emptied: Database, tmp_path: Path, damage: str
):
    folder = tmp_path / "spool"
    assert killed_while_appending(folder, ACKNOWLEDGED) == ACKNOWLEDGED
    [path] = folder.glob("*.sqlite")
    DAMAGES[damage](wal(path))
    found = {"": path.read_bytes(), "-wal": wal(path).read_bytes() if wal(path).exists() else b""}
    shown = spool_command(emptied.url, folder, "status")
    assert "that were acknowledged" in " ".join(shown.stderr.split())
    for _ in range(2):
        flushed = spool_command(emptied.url, folder, "flush")
        assert flushed.returncode == 3, flushed.stderr
        recorded = emptied.rows(TOKENS)
        missing = ACKNOWLEDGED - len(recorded)
        assert f"lacks up to {missing} request(s)" in " ".join(flushed.stderr.split())
    assert missing > 0
    assert all(tokens == 1000 + key for key, tokens in recorded)
    assert not path.exists()
    kept = path.with_suffix(f".{missing}-missing.damaged")
    for suffix, content in found.items():
        copy = Path(f"{kept}{suffix}")
        assert (copy.read_bytes() if copy.exists() else b"") == content
        assert not copy.exists() or copy.stat().st_mode & 0o777 == 0o600
    assert str(missing) in spool_command(emptied.url, folder, "status").stderr
    for copy in folder.glob("*.damaged*"):
        copy.unlink()
    assert spool_command(emptied.url, folder, "flush").returncode == 0
    assert list(folder.iterdir()) == []


def test_a_service_tells_a_damaged_log_once(
    emptied: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("token_tracking.client.recovery._LOOK_SECONDS", 0.1)
    killed_while_appending(tmp_path, ACKNOWLEDGED)
    [path] = tmp_path.glob("*.sqlite")
    flip(wal(path))
    with UsageTracker(dsn=emptied.url, spool_dir=tmp_path) as service:
        assert service.track_token_usage_sync("a", 1, idempotency_key="0") is True
        until(lambda: not path.exists())
        time.sleep(0.5)  # several intervals
    assert caplog.text.count("that were acknowledged") == 1
    assert [r.levelname for r in caplog.records if "acknowledged" in r.message] == ["ERROR"]
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_without_room_for_a_copy_nothing_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    killed_while_appending(tmp_path, 20)
    [path] = tmp_path.glob("*.sqlite")
    flip(wal(path))
    before = path.read_bytes(), wal(path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("token_tracking.client.spool.damage.shutil.copyfileobj", full)
        assert list(Spool.adopt(tmp_path)) == []
    assert "no copy of it can be made: No space left" in caplog.text
    assert (path.read_bytes(), wal(path).read_bytes()) == before
    assert list(tmp_path.glob("*.damaged*")) == []
    [file] = spool_files(tmp_path)
    assert file.missing > 0
    [adopted] = Spool.adopt(tmp_path)
    assert len(adopted.oldest(100, 2**20)) == 20 - file.missing
    adopted.close()


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_note_is_never_ahead_of_its_file(tmp_path: Path, after: float):
    """Wherever a process is killed, no request is reported missing."""
    told = killed_while_appending(tmp_path, -1, after)
    [file] = spool_files(tmp_path)
    assert (file.missing, file.damaged) == (0, 0)
    assert file.requests is not None
    assert told <= file.requests <= told + 1
    [adopted] = Spool.adopt(tmp_path)
    assert len(adopted.oldest(10**6, 2**30)) == file.requests
    adopted.forget([number for number, _ in adopted.oldest(10**6, 2**30)])
    adopted.close()
    assert list(tmp_path.iterdir()) == []


def test_an_append_that_fails_notes_nothing(tmp_path: Path):
    """Though a part of it had its numbers."""
    spool = Spool.create(tmp_path, 2**16)
    spool.append([event("1")])
    with pytest.raises(SpoolError, match="full"):
        spool.append([event(f"{number}") for number in range(5000)])
    spool.close()
    assert [(file.requests, file.missing) for file in spool_files(tmp_path)] == [(1, 0)]


def test_a_changed_row_is_neither_sent_nor_refused(emptied: Database, tmp_path: Path):
    """The changed row stays and is reported; all other rows are sent unchanged."""
    folder = tmp_path / "spool"
    killed_while_appending(folder, ACKNOWLEDGED)
    [path] = folder.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection:  # to where SQLite has no checksums
        connection.execute("pragma wal_checkpoint(truncate)")
    content = bytearray(path.read_bytes())
    for was, becomes in ((b'"tokens": 1012', b'"tokens": 9012'), (b'"tokens": 1077', b'"tokenz":')):
        assert content.count(was) == 1
        at = content.find(was)
        content[at : at + len(becomes)] = becomes
    path.write_bytes(content)
    assert [(file.requests, file.damaged) for file in spool_files(folder)] == [(ACKNOWLEDGED, 2)]
    for sent in (f"flushed: {ACKNOWLEDGED - 2} recorded\n", "nothing to flush\n"):
        flushed = spool_command(emptied.url, folder, "flush")
        assert (flushed.stdout, flushed.returncode) == (sent, 3)
        assert "2 row(s) that the disk has changed (number 12, 77)" in " ".join(
            flushed.stderr.split()
        )
    others = {n: 1000 + n for n in range(1, ACKNOWLEDGED + 1) if n not in {12, 77}}
    assert dict(emptied.rows(TOKENS)) == others
    refused = "select count(*)::int from token_tracking_raw.usage_event_rejections"
    assert emptied.value(refused) == 0
    shown = spool_command(emptied.url, folder, "status")
    assert "the disk has changed 2 request(s)" in " ".join(shown.stderr.split())


@pytest.mark.parametrize("lock", ["", f"{this_machine()}"])
def test_a_file_of_the_version_before_is_adopted(
    tmp_path: Path, lock: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "older.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute(OLD_TABLE)
        for key in ("1", "2"):
            connection.execute(OLD_APPEND, (key, f'{{"idempotency_key": "{key}"}}'))
    path.with_suffix(".lock").write_text(lock)
    assert [(file.requests, file.missing, file.damaged) for file in spool_files(tmp_path)] == [
        (2, 0, 0)
    ]
    [adopted] = Spool.adopt(tmp_path)
    found = adopted.oldest(10, 2**20)
    assert [request.order for _, request in found] == [("a", "1"), ("a", "2")]
    adopted.forget([number for number, _ in found])
    adopted.close()
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_the_version_before_reads_our_files(tmp_path: Path):
    """With the statements that it runs, and the words of the lock that it reads."""
    spool = Spool.create(tmp_path, 2**30)
    spool.append([event("1")])
    lock = spool.path.with_suffix(".lock").read_text()
    spool.close()
    assert lock.partition(" ")[0] == this_machine().partition(" ")[0]
    assert lock.rpartition(" ")[2] == this_machine().rpartition(" ")[2]
    with closing(sqlite3.connect(spool.path)) as connection, connection:
        connection.execute(OLD_TABLE)
        connection.execute(OLD_APPEND, ("2", "{}"))
        assert [row[3] for row in connection.execute(OLD_OLDEST)] == ["1", "2"]
    [adopted] = Spool.adopt(tmp_path)
    assert [request.order[1] for _, request in adopted.oldest(10, 2**20)] == ["1", "2"]
    adopted.close()


def test_what_was_moved_to_a_new_file_is_not_missing(tmp_path: Path):
    """A process whose log was removed leaves a complete file when it is killed."""
    spool, other = Spool.create(tmp_path, 2**30), Spool.create(tmp_path, 2**30)
    spool.append([event(f"{number}") for number in range(9)])
    wal(spool.path).unlink()
    assert spool.is_gone()
    spool.move_to(other)
    shutil.copytree(tmp_path, tmp_path / "left")
    assert [file.missing for file in spool_files(tmp_path / "left")] == [0, 0]
    assert sum(1 for one in Spool.adopt(tmp_path / "left") for _ in one.oldest(99, 2**20)) == 9
    for one in (spool, other):
        one.close()
