"""The workflow's steps are those of the Makefile, and its build of changed models works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, databases
from tests.support.databases import Database

VENV = ROOT / ".venv"
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]


def make(folder: Path, database: Database, *arguments: str, **settings: str) -> str:
    """Run make like the workflow does, in the existing environment."""
    done = subprocess.run(
        # Never recreate it: the copy cannot be installed as a project.
        ["make", "-C", folder, f"VENV={VENV}", f"--old-file={VENV / '.demo'}", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            **database.env,
            **settings,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project(folder: Path) -> Path:
    """Copy what the builds need."""
    folder.mkdir()
    for name in ("macros", "models", "seeds", "examples", "tests/data"):
        shutil.copytree(ROOT / name, folder / name)
    for file in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "dbt_project.yml",
        "profiles.yml",
        "selectors.yml",
    ):
        shutil.copy2(ROOT / file, folder / file)
    return folder


def test_each_step_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for step in STEPS if not step.startswith("apt-get ")]
    assert len(steps) == 4
    for step in steps:
        program, *words = step.split()
        assert program == "make"
        wanted = [word for word in words if word not in {"-C", "base", "change"}]
        assert wanted
        assert set(wanted) <= targets


def test_no_test_is_left_out_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The workflow installs all that tests would skip for; without PostgreSQL 15 they fail."""
    runs = [step.get("run", "") for step in WORKFLOW["jobs"]["checks"]["steps"]]
    [install] = [run for run in runs if run.startswith("apt-get install")]
    assert {"postgresql-15", "pgbouncer", "chromium", "gcc", "faketime"} <= set(install.split())
    assert runs.index(install) < runs.index("make test")
    monkeypatch.setattr(databases, "DEBIAN_15", tmp_path / "nothing")
    for there, ending in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("GITHUB_ACTIONS", there)
        with pytest.raises(BaseException, match="apt-get install postgresql-15") as ended:
            databases.debian_15()
        assert ended.type is ending


@pytest.mark.timeout(300)
def test_only_what_changed_is_built_beside_the_base(database: Database, tmp_path: Path):
    base, change, state = (
        project(tmp_path / "base"),
        project(tmp_path / "change"),
        tmp_path / "state",
    )
    make(base, database, "sample", "build", STATE=str(state))
    whole = "select sum(tokens)::int, sum(event_count)::int from {}.monthly_token_usage"
    expected = database.rows(whole.format("token_tracking"))
    assert expected[0][1] == 48
    for name in ("monthly_token_usage", "unmapped_labels"):
        model = change / "models" / "marts" / f"{name}.sql"
        model.write_text(model.read_text() + "\n-- a change\n")
    make(change, database, "build-changed", STATE=str(state), DBT_SCHEMA="change")
    results = json.loads((change / "target" / "run_results.json").read_text())["results"]
    built = {one["unique_id"].split(".")[-1] for one in results if "model." in one["unique_id"]}
    assert {"monthly_token_usage", "unmapped_labels"} <= built
    assert not {"int_usage__hourly", "hourly_token_usage", "daily_token_usage"} & built, built
    assert database.rows(whole.format("change")) == expected
    # Another billing time zone changes no line of SQL, and every total.
    settings = change / "dbt_project.yml"
    text = settings.read_text()
    assert text.count("billing_timezone: UTC") == 1
    settings.write_text(text.replace("billing_timezone: UTC", "billing_timezone: Asia/Kathmandu"))
    make(change, database, "build-changed", STATE=str(state), DBT_SCHEMA="change")
    zones = database.rows("select distinct billing_timezone from change.build_status")
    assert zones == [("Asia/Kathmandu",)]
    assert database.rows(whole.format("change")) == expected


def test_without_a_state_the_error_says_what_to_do(database: Database, tmp_path: Path):
    with pytest.raises(AssertionError, match="build-changed needs STATE=folder"):
        make(project(tmp_path / "change"), database, "build-changed")
