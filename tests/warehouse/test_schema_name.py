"""Settings that dbt reads from the environment: an unusable one is refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from token_tracking.marts.schema_name import LONGEST

if TYPE_CHECKING:
    from pathlib import Path

BAD = {
    'we"ird': "without quotes, backslashes and control characters",
    "we'ird": "without quotes, backslashes and control characters",
    "we\\ird": "without quotes, backslashes and control characters",
    "s" * 62: "62 bytes",
    "\u00e9" * 24: "48 bytes",
}
GOOD = ("token_tracking", "Acme-usage 2", "s" * LONGEST, "\u00e9" * 23)
# In one process, since dbt takes seconds to start.
PARSE = """
import json, os, sys
from dbt.cli.main import dbtRunner
for variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    outcome = dbtRunner().invoke(["parse", *sys.argv[2:]])
    print(json.dumps([outcome.success, str(outcome.exception)]))
"""


def parsed(folder: Path, *environments: dict[str, str]) -> list[tuple[bool, str]]:
    """Return how dbt reads the project in each environment."""
    options = [f"--{name}-dir={ROOT}" for name in ("project", "profiles")]
    options += [f"--{name}-path={folder}" for name in ("target", "log")]
    options += ["--log-level=none", "--no-partial-parse", "--no-use-colors"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PARSE, json.dumps(environments), *options],
        env={**os.environ, "PGHOST": "a,b"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_dbt_refuses_a_schema_that_it_cannot_name(tmp_path: Path):
    found = parsed(tmp_path, *({"DBT_SCHEMA": name} for name in (*BAD, *GOOD)))
    assert len(found) == len(BAD) + len(GOOD)
    for (name, said), (success, error) in zip(BAD.items(), found, strict=False):
        assert not success, name
        assert said in error
        assert "DBT_SCHEMA" in error
    assert all(success for success, _ in found[len(BAD) :]), found


@pytest.mark.parametrize(
    "words",
    [
        ("validate",),
        ("compare", "--daily", "daily"),
        ("prices", "suggest"),
        ("report", "--out", "x.html"),
        ("schema", "apply", "--roles"),
    ],
    ids=" ".join,
)
def test_commands_refuse_it_likewise(words: tuple[str, ...], tmp_path: Path):
    for name, said in (next(iter(BAD.items())), ("s" * 62, "62 bytes")):
        done = subprocess.run(
            [sys.executable, "-m", "token_tracking.cli", *words],
            env={**os.environ, "DBT_SCHEMA": name, "PGHOST": "/nowhere", "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert said in " ".join(done.stderr.replace("\u2502", " ").split())


def test_dbt_takes_one_port_for_all_hosts(tmp_path: Path):
    same, empty, spaced, differing = parsed(
        tmp_path, *({"PGPORT": ports} for ports in ("5433,5433", "", "5433, 5433", "5432,5433"))
    )
    assert same[0], same
    assert empty[0], empty
    assert spaced[0], spaced
    assert not differing[0]
    assert "PGPORT with one port for all hosts: dbt takes no list of different ones" in differing[1]
