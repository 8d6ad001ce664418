"""Finds the dbt project, which computes every total, and builds it in a separate process."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from ..embedded.databases import environment
from ..errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

_PROJECT: Final = "dbt_project.yml"
_NAMED: Final = re.compile(r"^name: token_tracking$", re.MULTILINE)
_FOLDERS: Final = ("macros", "models", "seeds", "tests/data")
_SECONDS_TO_STOP: Final = 10.0
_LINES_SHOWN: Final = 15


@dataclass(frozen=True)
class Warehouse:
    """The dbt project in `project`, for the database that the libpq variables `env` name."""

    project: Path
    env: Mapping[str, str]
    folder: Path

    @classmethod
    def find(cls, env: Mapping[str, str], folder: Path) -> Self:
        """Return the project that contains the current folder, or else this package.

        Args:
            env: libpq's variables for the database.
            folder: where dbt may write its target files and its log.

        Raises:
            WarehouseError: there is no such project, or dbt is not installed.

        """
        if importlib.util.find_spec("dbt") is None or not importlib.util.find_spec("dbt.cli"):
            message = "dbt is not installed: pip install 'token-tracking[warehouse]'"
            raise WarehouseError(message)
        here = Path.cwd()
        for place in (here, *here.parents, *Path(__file__).resolve().parents):
            file = place / _PROJECT
            if file.is_file() and _NAMED.search(file.read_text("utf-8")):
                return cls(place, env, folder)
        message = (
            f"no dbt project of token-tracking ({_PROJECT}) in this folder, above it or beside the "
            "package: run this in a checkout of the repository"
        )
        raise WarehouseError(message)

    def fingerprint(self) -> str:
        """Return a fingerprint that changes with any file of the project."""
        digest = sha256()
        for file in self._files():
            digest.update(f"{file.relative_to(self.project)}\0".encode())
            digest.update(sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def build(self, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Run `dbt build`.

        Args:
            on_progress: called with the number of finished nodes, and of all nodes.

        Raises:
            WarehouseError: a node failed; the message names dbt's log, the notes are dbt's output.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "dbt.log"
        command = [
            *(sys.executable, "-c", "from dbt.cli.main import cli; cli()", "build"),
            f"--project-dir={self.project}",
            f"--profiles-dir={self.project}",
            f"--target-path={(self.folder / 'target').absolute()}",
            f"--log-path={self.folder.absolute()}",
            "--log-format=json",
            "--log-format-file=text",
            "--no-use-colors",
        ]
        with subprocess.Popen(
            command,
            env=environment(self.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                said = _followed(cast("Iterator[str]", process.stdout), on_progress)
                code = process.wait()
            except BaseException:
                # Ctrl-C on a terminal reaches dbt as well, which then rolls back.
                process.terminate()
                try:
                    process.wait(_SECONDS_TO_STOP)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if code:
            failed = WarehouseError(f"dbt build failed; its log is {log}")
            for line in said[-_LINES_SHOWN:] or ["it said nothing"]:
                failed.add_note(line)
            raise failed

    def _files(self) -> Iterator[Path]:
        yield self.project / _PROJECT
        for folder in _FOLDERS:
            yield from sorted(file for file in (self.project / folder).rglob("*") if file.is_file())


def _followed(lines: Iterator[str], on_progress: Callable[[int, int], object]) -> list[str]:
    """Return dbt's complaints, and all output that is not a log event."""
    said: list[str] = []
    done = total = 0
    for line in lines:
        try:
            event = cast("dict[str, dict[str, object]]", json.loads(line))
            info, data = event["info"], event["data"]
        except (ValueError, TypeError, KeyError):
            said.append(line.rstrip())
            continue
        if info.get("level") == "error":
            said += str(info.get("msg", "")).rstrip().split("\n")
        if info.get("name") == "LogStartLine":  # a test's result has no such line
            total = cast("int", data["total"])
        if info.get("name") in _RESULTS:
            done += 1
            on_progress(done, total)
    return said


_RESULTS: Final = frozenset({"LogModelResult", "LogSeedResult", "LogTestResult"})
