"""Commands as people run them: a process, its two streams, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "token_tracking.cli"]


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
) -> Ended:
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
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
        [sys.executable, "-m", "token_tracking.cli", "refresh", *words],
        cwd=project,
        env=environment(env, **more),
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT * 2,
    )
