"""A durable server for one benchmark, and databases on it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from token_tracking.embedded.server import Server
from token_tracking.raw.schema import apply_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

# Durable as in production; sized so that no checkpoint falls into a measurement by chance.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "512MB",
    "jit": "off",
}


@dataclass(frozen=True)
class Database:
    """A database with the raw schema."""

    url: str
    env: dict[str, str]

    def connect(self) -> psycopg.Connection[tuple]:
        """Connect in autocommit mode."""
        return psycopg.connect(self.url, autocommit=True)

    def value(self, query: str) -> int:
        """Return the one number that a query gives."""
        with closing(self.connect()) as connection:
            [(number,)] = connection.execute(query).fetchall()  # type: ignore[arg-type]
            return number

    def run(self, statements: str) -> None:
        """Run statements."""
        with closing(self.connect()) as connection:
            connection.execute(statements)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Bench:
    """One benchmark's server and scratch folder."""

    server: Server
    folder: Path
    _numbers: itertools.count[int]

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Bench]:
        """Start a server in a folder of its own, and remove both in the end."""
        folder = Path(tempfile.mkdtemp(prefix="tt-bench-"))
        folder.chmod(0o755)  # a root's server runs as somebody else
        server = Server(folder / "data", settings=SETTINGS)
        try:
            server.start()
            yield cls(server, folder, itertools.count(1))
        finally:
            server.stop("immediate")
            shutil.rmtree(folder)

    def database(self) -> Database:
        """Make a database with an empty raw schema."""
        name = f"bench_{next(self._numbers)}"
        with closing(psycopg.connect(self.server.url("postgres"), autocommit=True)) as connection:
            connection.execute(f"create database {name}")  # type: ignore[arg-type]
        with closing(psycopg.connect(self.server.url(name))) as connection:
            apply_schema(connection)
            connection.execute("create extension pg_stat_statements")
            connection.commit()
        return Database(self.server.url(name), self.server.environment(name))

    def pgbench(self, database: Database, script: str, *, clients: int, seconds: int) -> float:
        """Return the transactions a second of a script."""
        file = self.folder / "script.sql"
        file.write_text(script)
        done = subprocess.run(
            [
                self.server.bin_dir / "pgbench",
                "--no-vacuum",
                "--protocol=prepared",
                f"--client={clients}",
                "--jobs=2",
                f"--time={seconds}",
                f"--file={file}",
            ],
            env=database.env,
            check=True,
            capture_output=True,
            text=True,
        )
        [line] = [line for line in done.stdout.splitlines() if line.startswith("tps")]
        return float(line.split()[2])
