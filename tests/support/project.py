"""Runs this repository's dbt project in resident workers, so that a build costs no start.

A fork server imports dbt and reads the project once, the workers are forks of it: builds can run at
once and be killed, and none leaves anything behind in the test's own process.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from dbt.cli.main import dbtRunnerResult

SCHEMA = "token_tracking"
LONGEST_BUILD = 120  # seconds
# A warning test is about the data, not about the project.
STRICT = '{"error": "all", "warn": ["TypeCodeNotFound", "LogTestResult"]}'

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support.preload"])
_manifests: list[Any] = []


@dataclass(frozen=True)
class Edit:
    """A replacement of one text in one file of the project."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class BuildResult:
    """The result of a build: each node's status and message, or the error before any node."""

    statuses: dict[str, str] = field(default_factory=dict[str, str])
    messages: dict[str, str] = field(default_factory=dict[str, str])
    error: str | None = None
    killed: bool = False

    @property
    def green(self) -> bool:
        """Return whether every node succeeded; a test may warn."""
        good = {"success", "pass", "warn", "skipped", "no-op"}
        return not self.killed and self.error is None and set(self.statuses.values()) <= good

    @property
    def said(self) -> str:
        """Return all that the build complained about."""
        bad = [
            f"{node}: {self.messages[node]}"
            for node, status in self.statuses.items()
            if status not in {"success", "pass", "warn", "no-op"}
        ]
        return "\n".join([*([self.error] if self.error else []), *bad])


@dataclass
class RunningBuild:
    """A running build, in a worker that takes the next one afterwards."""

    process: BaseProcess
    pipe: Connection
    killed: bool = False

    def wait(self) -> BuildResult:
        """Wait for the end of the build."""
        try:
            if not self.pipe.poll(LONGEST_BUILD):
                self.kill()
                message = f"no build takes {LONGEST_BUILD} s: is it waiting for a lock?"
                raise AssertionError(message)
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.pipe.close()
            self.process.join()
            if not self.killed:
                message = "the worker died; its traceback is on stderr"
                raise RuntimeError(message) from None
            return BuildResult(killed=True)
        if not self.killed:
            _idle.append(self)
        return result

    def kill(self) -> None:
        """Kill the build with SIGKILL; wait() then returns that, or the result if it had ended."""
        self.killed = True
        self.process.kill()


_idle: list[RunningBuild] = []


@atexit.register
def _dismiss_workers() -> None:
    for worker in _idle:
        worker.pipe.close()
    for worker in _idle:
        worker.process.join(5)


@dataclass(frozen=True)
class DbtProject:
    """The project, with some edits or none, against the database that `env` names."""

    env: Mapping[str, str]
    scratch: Path
    edits: tuple[Edit, ...] = ()

    def start(self, *words: str, **variables: object) -> RunningBuild:
        """Start a dbt command in a worker; `variables` are dbt's."""
        worker = _idle.pop() if _idle else _new_worker()
        words = (*words, "--vars", json.dumps(variables))
        worker.pipe.send((self.scratch, dict(self.env), words, self.edits))
        return worker

    def run(self, *words: str, **variables: object) -> BuildResult:
        """Run a dbt command to its end."""
        return self.start(*words, **variables).wait()

    def must(self, *words: str, **variables: object) -> BuildResult:
        """Run a dbt command that has to succeed."""
        result = self.run(*words, **variables)
        assert result.green, result.said
        return result


def _new_worker() -> RunningBuild:
    mine, theirs = _forks.Pipe()
    process = _forks.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return RunningBuild(process, mine)


def _work(pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    while True:
        try:
            scratch, env, words, edits = pipe.recv()
        except EOFError:
            return
        for name in [name for name in os.environ if name.startswith(("PG", "DBT_"))]:
            del os.environ[name]
        os.environ.update(env)
        outcome = invoke(scratch, words, edits)
        nodes = getattr(outcome.result, "results", None) or []
        pipe.send(
            BuildResult(
                {node.node.name: str(node.status) for node in nodes},
                {node.node.name: str(node.message) for node in nodes},
                str(outcome.exception) if outcome.exception else None,
            )
        )


def is_read() -> bool:
    """Return whether this process, and so its children, have read the project."""
    return bool(_manifests)


def invoke(scratch: Path, words: Sequence[str], edits: Sequence[Edit] = ()) -> dbtRunnerResult:
    """Run a dbt command in this process, reading the project only the first time."""
    from dbt.cli.main import dbtRunner

    scratch.mkdir(parents=True, exist_ok=True)
    options = _options(scratch)
    if not _manifests:
        outcome = dbtRunner().invoke(["parse", *options])
        if outcome.exception:
            return outcome
        outcome.result.selectors = {}  # dbt cannot copy a project that has some
        _manifests.append(outcome.result)
    manifest = _in_database(_manifests[0], os.environ["PGDATABASE"])
    with ExitStack() as undo:
        for edit in edits:
            _apply(edit, manifest, undo)
        return dbtRunner(manifest=manifest).invoke([*words, *options])


def _options(scratch: Path) -> list[str]:
    return [
        f"--project-dir={ROOT}",
        f"--profiles-dir={ROOT}",
        f"--target-path={scratch / f'target-{os.getpid()}'}",
        f"--log-path={scratch / 'logs'}",
        "--log-level=none",
        "--log-level-file=none",
        "--no-write-json",
        "--no-partial-parse",
        "--no-use-colors",
        f"--warn-error-options={STRICT}",
    ]


def _in_database(manifest: Any, database: str) -> Any:
    """Move the project's nodes to another database than the one that it was read for."""
    for node in (*manifest.nodes.values(), *manifest.sources.values()):
        old = node.database
        node.database = database
        if getattr(node, "relation_name", None):
            node.relation_name = node.relation_name.replace(f'"{old}"', f'"{database}"', 1)
    return manifest


def _apply(edit: Edit, manifest: Any, undo: ExitStack) -> None:
    """Edit the project in memory until `undo` closes; the old text must occur once."""
    texts = [
        (thing, name)
        for things, name in ((manifest.macros, "macro_sql"), (manifest.nodes, "raw_code"))
        for thing in things.values()
        if thing.original_file_path == edit.file
    ]
    found = sum(getattr(thing, name).count(edit.old) for thing, name in texts)
    if found != 1:
        message = f"{edit.file} has {edit.old!r} {found} times"
        raise LookupError(message)
    for thing, name in texts:
        text = getattr(thing, name)
        undo.callback(setattr, thing, name, text)
        setattr(thing, name, text.replace(edit.old, edit.new))
