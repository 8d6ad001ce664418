"""Commands as people run them: a process, its two streams, its exit code."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import SHARED
from tests.support.waiting import until

COMMAND = [sys.executable, "-m", "token_tracking.cli"]


_kept: list[subprocess.Popen[bytes]] = []


@functools.cache
def forked_command(program: str = "token-tracking") -> list[str]:
    """Return the words that start a command, or dbt, as a fork of a process that has imported all.

    This spares the imports, which take up to ten seconds; one such process serves all workers.
    """
    if SHARED:  # this process tests a package of its own
        return COMMAND if program == "token-tracking" else [sys.executable, "-m", "dbt.cli.main"]
    served = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"tt-commands-{served}"
    place = folder / "socket"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass  # another worker starts it
    else:
        _kept.append(
            subprocess.Popen(
                [
                    *(sys.executable, Path(__file__).with_name("command_server.py")),
                    *(str(place), str(served)),
                ],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
    until(lambda: place.exists() or not folder.exists(), 120, "the server of commands starts")
    assert place.exists(), "the server of commands failed: its traceback is on stderr"
    launch = str(Path(__file__).with_name("launch.py"))
    return [sys.executable, "-I", "-S", launch, str(place), program]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    folder: Path | None = None,
    started: Sequence[str] = (),
) -> Ended:
    """Run a command to its end, started by `started` (default: as a fork, which is quicker)."""
    done = subprocess.run(
        [*(started or forked_command()), *map(str, words)],
        env={**os.environ, **(env or {})},
        input=stdin,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


LONGEST_WAIT = 120.0  # seconds; the machine may be busy


def environment(env: dict[str, str], **more: str) -> dict[str, str]:
    return {**os.environ, **env, "PYTHONPATH": ":".join(sys.path), **more}


def refresh_once(project: Path, env: dict[str, str], *words: str, **more: str):
    return subprocess.run(
        [*forked_command(), "refresh", *words],
        cwd=project,
        env=environment(env, **more),
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT * 2,
    )
