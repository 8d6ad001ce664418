"""A server, a database, a proxy in front of it, clients under load, and the final check."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg

from tests.support.clock import Clock
from tests.support.databases import TEMPLATE, Database, copy_database
from tests.support.proxy import Proxy, socket_path
from tests.support.waiting import ended, until
from token_tracking import UsageTracker
from token_tracking.client.spool.damage import kept_aside
from token_tracking.client.spool.spool import spool_files
from token_tracking.embedded.server import Server

CLIENT = Path(__file__).with_name("client.py")


_numbers = itertools.count(1)


def lasting_database(server: Server) -> Database:
    """Copy the template; no connection stays open, so the server may die meanwhile."""
    name = f"faults_{os.getpid()}_{next(_numbers)}"
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        copy_database(connection, name, TEMPLATE)
    return Database(server.url(name), server.environment(name))


def link_to_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    path.unlink()
    path.symlink_to(copy)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Changes of an open file that are possible at any moment and lose nothing.
TAKINGS: list[Callable[[Path], object]] = [
    lambda path: Path(f"{path}-wal").unlink(),
    lambda path: path.unlink(),
    lambda path: path.rename(path.with_suffix(".taken")),
    link_to_copy,
    become_folder,
]


def _flip_a_bit(log: Path) -> None:
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)


def _zero_a_page(log: Path) -> None:
    content = bytearray(log.read_bytes())
    at = len(content) // 2 // 4096 * 4096
    content[at : at + 4096] = bytes(len(content[at : at + 4096]))
    log.write_bytes(content)


# Damage by a disk to the write-ahead log of a killed process.
DAMAGES: list[Callable[[Path], object]] = [
    _flip_a_bit,
    _zero_a_page,
    lambda log: os.truncate(log, log.stat().st_size // 2),
    lambda log: log.unlink(),
]


class Arena:
    """The state of one schedule."""

    def __init__(self, server: Server, database: Database, folder: Path, clock: Clock) -> None:
        self.server = server
        self.clock = clock
        self.database = database
        self.name = database.env["PGDATABASE"]
        self.proxy = Proxy(socket_path(server.host))
        self.spool = folder / "spool"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: set[str] = set()
        self.taken: list[Path] = []

    def start_client(self, name: str, **options: object) -> subprocess.Popen[bytes]:
        given = {
            "name": name,
            "dsn": self.proxy.dsn(self.name),
            "spool": str(self.spool),
            "notes": str(self.notes),
            **options,
        }
        client = subprocess.Popen(
            [sys.executable, "-W", "error", str(CLIENT), json.dumps(given)],
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        self.clients[name] = client
        return client

    def wait_for(self, name: str) -> None:
        until((self.notes / f"{name}.started").exists, what=f"{name} starts")

    def kill_client(self, name: str) -> None:
        self.killed.add(name)
        client = self.clients[name]
        client.send_signal(signal.SIGKILL)
        client.wait(10)

    def restart_server(self) -> None:
        self.server.start()
        until(self._answers, what="the server answers")

    def _answers(self) -> bool:
        try:
            self.database.value("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def hold_keys(self, name: str, seconds: float) -> None:
        """Hold keys that a client is about to use, as a session that idles in its transaction."""
        path = self.notes / f"{name}.acknowledged"
        calls = len(path.read_text().splitlines()) if path.exists() else 0
        batch = json.dumps(
            [
                {"tenant_id": f"t{call % 3}", "tokens": 7, "idempotency_key": f"{name}-{call}"}
                for call in range(calls + 1 | 1, calls + 60, 6)
            ]
        )
        self._hold("select token_tracking_raw.track_token_usage_batch(%s)", (batch,), seconds)

    def hold_the_table(self, seconds: float) -> None:
        """Hold a lock on the table that each batch waits for."""
        self._hold("lock table token_tracking_raw.usage_events in share mode", None, seconds)

    def _hold(self, statement: str, values: tuple[str] | None, seconds: float) -> None:
        with (
            contextlib.suppress(psycopg.Error),
            closing(psycopg.connect(self.database.url)) as connection,
        ):
            connection.execute("set lock_timeout = '1s'")
            connection.execute(statement, values)  # type: ignore[arg-type]
            time.sleep(seconds)
            connection.rollback()

    def terminate_backends(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.database.rows(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'token-tracking' and datname = current_database()"
            )

    def take_a_spool_file(self, living: list[str], taking: Callable[[Path], object]) -> None:
        """Apply the change to a file in use, and wait until every client has continued."""

        def sizes() -> list[int]:
            notes = [self.notes / f"{name}.acknowledged" for name in living]
            return [note.stat().st_size if note.exists() else 0 for note in notes]

        def files() -> set[Path]:
            return set(self.spool.glob("*.sqlite"))

        def owned() -> list[Path]:
            return [file.path for file in spool_files(self.spool) if file.owned and file.requests]

        def written() -> Path | None:
            """Return one that calls go to now, and not one that only waits to be sent."""
            for path in owned():
                with suppress(FileNotFoundError):
                    if Path(f"{path}-wal").stat().st_mtime > began:
                        return path
            return None

        began = time.time() + 0.2  # by then nothing is sent any more
        until(lambda: written() is not None, what="something is spooled")
        taken = written()
        assert taken is not None
        before = files()
        taking(taken)
        self.taken.append(taken)
        until(lambda: bool(files() - before), what="a new spool file")
        # Their next answers arrive after the waiting requests were moved.
        for _ in range(2):
            reached = sizes()
            until(
                lambda reached=reached: all(
                    now > then for now, then in zip(sizes(), reached, strict=True)
                ),
                what="every client goes on",
            )

    def damage_a_log(self, victim: str, damage: Callable[[Path], object]) -> None:
        """Kill a client in an outage, when it has spooled, and damage the log that it leaves."""

        def owned() -> set[Path]:
            files = spool_files(self.spool)
            return {file.path for file in files if file.owned and file.requests}

        until(lambda: bool(owned()), what="something is spooled")
        before = owned()
        self.kill_client(victim)
        for path in before - owned():
            log = Path(f"{path}-wal")
            if log.exists():
                damage(log)

    def end_clients(self) -> None:
        for name, client in self.clients.items():
            if name not in self.killed:
                self.wait_for(name)
                with contextlib.suppress(ProcessLookupError):
                    client.send_signal(signal.SIGTERM)
        for name, client in self.clients.items():
            code = client.wait(40)
            assert code in {0, -signal.SIGKILL}, f"{name} ended with {code}"

    def drain(self) -> None:
        """Send what ended processes left, like the next process does."""
        for path in self.taken:  # the file put in its place belongs to no process
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                path.rmdir()
        if not self.spool.exists() or not list(self.spool.glob("*.sqlite")):
            return
        with UsageTracker(dsn=self.database.url, spool_dir=self.spool):
            until(lambda: not list(self.spool.glob("*.sqlite")), 60, "the spool is empty")

    def noted(self, kind: str) -> list[str]:
        return [
            line for path in self.notes.glob(f"*.{kind}") for line in path.read_text().splitlines()
        ]

    def check(self) -> int:
        """Assert what must hold after any faults; return the number of acknowledged calls."""
        rows = self.database.rows(
            "select conversation_id, count(*)::int from token_tracking_raw.usage_events group by 1"
        )
        recorded = {name for name, _ in rows}
        assert [name for name, count in rows if count != 1] == [], "recorded twice"
        old_calls = Counter(self.noted("fallback"))
        assert [name for name, count in old_calls.items() if count != 1] == [], "fallback twice"
        assert recorded & old_calls.keys() == set(), "recorded, and by the fallback too"
        acknowledged = self.noted("acknowledged")
        assert len(acknowledged) == len(set(acknowledged))
        rejections = "select count(*)::int from token_tracking_raw.usage_event_rejections"
        assert self.database.value(rejections) == 0, "refused what was accepted"
        missing = set(acknowledged) - recorded - old_calls.keys()
        # The number of requests that a disk lost is reported.
        told = sum(count for _, count in kept_aside(self.spool))
        lost = f"{len(missing)} of {len(acknowledged)} acknowledged are lost, {told} told"
        assert len(missing) <= told, lost
        for path in self.notes.glob("*.report"):
            report = json.loads(path.read_text())
            assert ended(report["stats"]) == report["calls"], report
            assert report["stats"]["waiting"] == 0, report
        for name in self.clients.keys() - self.killed:
            assert (self.notes / f"{name}.report").exists(), f"{name} left no report"
        tokens = "select count(*) from token_tracking_raw.usage_events where tokens <> 7"
        assert self.database.value(tokens) == 0
        return len(acknowledged)

    def close(self) -> None:
        self.clock.set(0)
        for client in self.clients.values():
            if client.poll() is None:
                client.kill()
                client.wait()
        self.proxy.close()


def run_schedule(arena: Arena, seed: int, steps: int, **options: object) -> int:
    """Run two clients while faults occur in an order that the seed determines."""
    chance = random.Random(seed)
    number = 0
    living: list[str] = []

    def new_client() -> None:
        nonlocal number
        number += 1
        name = f"s{seed}c{number}"
        arena.start_client(name, max_wait=chance.choice([0.3, 0.6, 1.5]), **options)
        living.append(name)

    def kill_a_client() -> None:
        victim = living.pop(chance.randrange(len(living)))
        arena.kill_client(victim)
        new_client()

    def kill_the_server() -> None:
        arena.server.kill()
        if chance.random() < 0.3:
            kill_a_client()
        time.sleep(chance.random() * 0.6)
        arena.restart_server()

    def drop_answers() -> None:
        arena.proxy.drop_answers += chance.randrange(1, 4)

    def silence() -> None:
        arena.proxy.silent = True
        time.sleep(0.2 + chance.random() * 0.8)
        arena.proxy.silent = False
        arena.proxy.cut()

    def refuse() -> None:
        arena.proxy.refusing = True
        arena.proxy.cut()
        time.sleep(chance.random() * 0.5)
        arena.proxy.refusing = False

    def set_the_clock() -> None:
        arena.clock.set(chance.choice([-86400, -900, -310, 60, 3600, 0]))

    def hold_keys() -> None:
        arena.hold_keys(chance.choice(living), 0.2 + chance.random())

    def hold_the_table() -> None:
        arena.hold_the_table(0.1 + 0.7 * chance.random())

    def take_a_spool_file() -> None:
        """In an outage, calls continue in a new file, with all requests that waited in this one."""
        arena.proxy.refusing = True
        arena.proxy.cut()
        arena.take_a_spool_file(living, chance.choice(TAKINGS))
        arena.proxy.refusing = False

    def damage_a_log() -> None:
        arena.proxy.refusing = True
        arena.proxy.cut()
        victim = living.pop(chance.randrange(len(living)))
        arena.damage_a_log(victim, chance.choice(DAMAGES))
        arena.proxy.refusing = False
        new_client()

    new_client()
    new_client()
    for name in living:
        arena.wait_for(name)
    faults = [
        drop_answers,
        drop_answers,
        arena.terminate_backends,
        arena.proxy.cut,
        silence,
        refuse,
        kill_a_client,
        kill_the_server,
        set_the_clock,
        set_the_clock,
        hold_keys,
        hold_keys,
        hold_the_table,
    ]
    if not options.get("fallback"):
        faults += [take_a_spool_file, damage_a_log]
    for _ in range(steps):
        time.sleep(0.05 + chance.random() * 0.3)
        chance.choice(faults)()
    arena.proxy.drop_answers = 0
    arena.end_clients()
    arena.clock.set(0)
    arena.drain()
    return arena.check()
