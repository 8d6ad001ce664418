"""The command line as users run it: a process, its two streams and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import COMMAND, Ended, run
from tests.support.loading import COUNT
from token_tracking.cli import command_line

if TYPE_CHECKING:
    from tests.support.databases import Database

ROWS = '{"tenant_id": "acme", "tokens": 5}\n{"tenant_id": "acme", "tokens": 7}\n'


def test_help_is_quick_and_says_what_there_is():
    started = time.monotonic()
    ended = run("--help")
    assert time.monotonic() - started < 5
    assert (ended.code, ended.err) == (0, "")
    for command in ("schema", "load", "demo", "db"):
        assert command in ended.out
    script = (
        "import sys, token_tracking.cli as cli;"
        "print([name for name in ('psycopg', 'pydantic', 'dbt', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_version():
    ended = run("--version")
    assert ended.code == 0
    assert ended.out.startswith("token-tracking")


def test_an_unknown_option_is_a_wrong_use():
    ended = run("load", "--colums", "a=b", "x.csv")
    assert ended.code == 2
    assert "--colums" in ended.err


def test_schema_apply_twice(database: Database, server):
    name = f"{database.env['PGDATABASE']}_bare"
    database.rows("select 1")
    env = {**database.env, "PGDATABASE": name}
    with database.connect() as connection:
        connection.execute(f"create database {name}")
        first, second = run("schema", "apply", env=env), run("schema", "apply", env=env)
        connection.execute(f"drop database {name} with (force)")
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    assert "created" in first.out
    assert name in first.out
    assert "as before" in second.out


def test_load_from_standard_input_twice(database: Database):
    first = run("load", "-", "--format", "jsonl", env=database.env, stdin=ROWS)
    second = run("load", "-", "--format", "jsonl", env=database.env, stdin=ROWS)
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    assert numbers(first) == [2, 2, 0, 0, 0]
    assert numbers(second) == [2, 0, 2, 0, 0]


def numbers(ended: Ended) -> list[int]:
    """Return the counts in the last row of the table."""
    cells = [line.strip("│ ").split("│") for line in ended.out.splitlines() if line.startswith("│")]
    return [int(cell.strip().replace(",", "")) for cell in cells[-1][1:]]


def test_output_that_is_not_unicode(database: Database, tmp_path: Path):
    file = tmp_path / "usage-\u00fc.jsonl"
    file.write_text(ROWS)
    env = {**database.env, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    ended = run("load", file, env=env, started=COMMAND)
    assert ended.code == 0, ended.err
    assert "usage-?.jsonl" in ended.out


def test_load_with_bad_rows_says_where_and_exits_with_3(database: Database, tmp_path: Path):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("tokens\n1\n")
    bad.write_text("tokens\n" + "x\n" * 7 + "2\n")
    ended = run("load", good, bad, "--set", "tenant_id=acme", env=database.env)
    assert ended.code == 3
    assert numbers(ended) == [9, 2, 0, 0, 7]
    assert f"{bad}, line 2: rejection: tokens: text that is not an integer" in ended.err
    assert "2 more" in ended.err
    assert database.value(COUNT) == 2


def test_a_half_written_line_is_told_and_exits_with_3(database: Database, tmp_path: Path):
    file = tmp_path / "g.csv"
    file.write_text("occurred_at,tenant_id,tokens\n2026-05-01T10:01:00Z,grow,12")
    ended = run("load", file, env=database.env)
    assert (ended.code, numbers(ended)) == (3, [0, 0, 0, 0, 0])
    assert "g.csv, line 2: the last line has no line end" in ended.err
    assert "--complete" in ended.err
    assert run("load", file, "--growing", env=database.env).code == 0
    ended = run("load", "-", "--format", "csv", env=database.env, stdin=file.read_text())
    assert (ended.code, numbers(ended)) == (3, [0, 0, 0, 0, 0])
    ended = run("load", file, "--complete", env=database.env)
    assert (ended.code, numbers(ended)) == (0, [1, 1, 0, 0, 0])


def test_a_row_under_another_key_stops_a_load_unless_told(database: Database, tmp_path: Path):
    file = tmp_path / "z.csv"
    file.write_text("When,tenant_id,tokens,Model\n2026-05-01T10:00:00Z,acme,7,gpt\n")
    named = ("--columns", "occurred_at=When,model=Model")
    assert run("load", file, "--columns", "occurred_at=When", env=database.env).code == 0
    ended = run("load", file, *named, env=database.env)
    assert ended.code == 1
    assert f"{file}, line 2: recorded already under another key" in ended.err
    ended = run("load", file, *named, "--alike", "skip", env=database.env)
    assert (ended.code, numbers(ended)) == (0, [1, 0, 1, 0, 0])
    assert "1 rows were recorded under other keys before" in ended.err
    assert run("load", file, *named, "--alike", "perhaps", env=database.env).code == 2
    assert database.value(COUNT) == 1


def test_a_load_with_the_wrong_zone_is_taken_back(database: Database, tmp_path: Path):
    file = tmp_path / "z.csv"
    file.write_text("occurred_at,tenant_id,tokens\n2026-05-01 10:00:00,acme,7\n")
    right = ("--timezone", "America/New_York")
    voids = "select count(*) from token_tracking_raw.usage_voids"
    assert run("load", file, env=database.env).code == 0
    ended = run("load", file, *right, env=database.env)
    assert ended.code == 3
    assert "1 rows are recorded with another time" in ended.err
    assert "2026-05-01T10:00:00+00:00 recorded, 2026-05-01T14:00:00+00:00 in" in ended.err
    asked = run("load", file, "--undo", env=database.env)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    other = run("load", file, *right, "--undo", "--yes", env=database.env)
    assert (other.code, numbers(other)) == (3, [0, 0, 1, 0])
    trial = run("load", file, "--undo", "--dry-run", env=database.env)
    assert (trial.code, numbers(trial), database.value(voids)) == (0, [1, 0, 0, 0], 0)
    done = run("load", file, "--undo", "--yes", "--reason", "zone", env=database.env)
    assert (done.code, numbers(done), database.value(voids)) == (0, [1, 0, 0, 0], 1)
    again = run("load", file, *right, env=database.env)
    assert "1 rows are recorded and voided" in again.err
    new = run("load", file, *right, "--source", "2", env=database.env)
    assert (new.code, numbers(new)) == (0, [1, 1, 0, 0, 0])
    assert run("load", file, "--dry-run", env=database.env).code == 2


def test_undo_says_what_it_did_not_read(database: Database, tmp_path: Path):
    file = tmp_path / "g.csv"
    file.write_text("tenant_id,tokens\nacme,5\nacme,7")
    assert run("load", file, "--complete", env=database.env).code == 0
    ended = run("load", file, "--undo", "--yes", env=database.env)
    assert (ended.code, numbers(ended)) == (3, [1, 0, 0, 0])
    assert "g.csv, line 3: the last line has no line end" in ended.err
    assert run("load", file, "--undo", "--yes", "--growing", env=database.env).code == 0
    ended = run("load", file, "--undo", "--yes", "--complete", env=database.env)
    assert (ended.code, numbers(ended)) == (0, [1, 1, 0, 0])


def test_undo_that_fails_says_what_it_did(database: Database, tmp_path: Path):
    file = tmp_path / "k.csv"
    rows = "".join(f"acme,k{number},1\n" for number in range(600))
    file.write_text(f"tenant_id,idempotency_key,tokens\n{rows}")
    assert run("load", file, env=database.env).code == 0
    with database.connect() as connection:
        connection.execute(
            "alter table token_tracking_raw.usage_voids"
            " add constraint not_this_one check (idempotency_key <> 'k599')"
        )
    ended = run("load", file, "--undo", "--yes", env=database.env)
    assert (ended.code, numbers(ended)) == (1, [500, 0, 0, 0])
    assert "the same command does the rest" in ended.err


def test_a_missing_column_is_one_sentence(database: Database, tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("a,b\n1,2\n")
    ended = run("load", file, "--columns", "tokens=c", "--set", "tenant_id=x", env=database.env)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"Error: {file} has no column 'c' for tokens; its header is: a, b\n"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"PGHOST": "/nowhere", "PGDATABASE": "usage"}, "database usage at /nowhere:5432"),
        ({"PGHOST": "127.0.0.1", "PGPORT": "1", "PGPASSWORD": "geheim"}, "127.0.0.1:1 as user"),
        (
            {"TOKEN_TRACKING_DSN": "postgresql://u:geheim@127.0.0.1:1/d"},
            "database d at 127.0.0.1:1",
        ),
        ({"TOKEN_TRACKING_DSN": "postgresql://u:ge/heim@127.0.0.1:1/d"}, "TOKEN_TRACKING_DSN"),
        ({"TOKEN_TRACKING_DSN": "postgresql://u:x@heim@127.0.0.1:1/d"}, "TOKEN_TRACKING_DSN"),
        (
            {"TOKEN_TRACKING_DSN": "password=geheim dbname"},
            "TOKEN_TRACKING_DSN is not a valid connection string",
        ),
    ],
)
def test_an_unreachable_database_is_named_without_password(env, message):
    words = ("schema", "apply") if "PGHOST" in env else ("load", "-", "--format", "csv")
    ended = run(*words, env={"PGCONNECT_TIMEOUT": "5", **env}, stdin="tenant_id,tokens\na,1\n")
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err
    assert "heim" not in ended.err
    assert ended.err.count("\n") == 1


def test_a_database_without_schema_says_how_to_make_it(database: Database):
    env = {**database.env, "PGDATABASE": "postgres"}
    ended = run("load", "-", "--format", "jsonl", env=env, stdin=ROWS)
    assert ended.code == 1
    assert "has no token_tracking_raw schema: run token-tracking schema apply" in ended.err


def test_the_dsn_overrides_libpqs_variables(database: Database):
    env = {"PGHOST": "/nowhere", "TOKEN_TRACKING_DSN": database.url}
    assert run("load", "-", "--format", "jsonl", env=env, stdin=ROWS).code == 0
    assert database.value(COUNT) == 2


def test_ctrl_c_says_what_is_kept_for_the_next_load(database: Database):
    rows = [f'{{"tenant_id": "acme", "tokens": {number}}}\n' for number in range(2250)]
    command = [*COMMAND, "load", "-", "--format", "jsonl"]
    with subprocess.Popen(
        command,
        env={**os.environ, **database.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.writelines(rows)
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while database.value(COUNT) != 2000 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert numbers(Ended(130, out, err)) == [2000, 2000, 0, 0, 0]
    assert (
        err == "Error: interrupted: what is counted above is kept, the same command adds the rest\n"
    )
    ended = run("load", "-", "--format", "jsonl", env=database.env, stdin="".join(rows))
    assert numbers(ended) == [2250, 250, 2000, 0, 0]


def test_ctrl_c_while_the_schema_waits_for_its_turn(database: Database):
    with database.connect() as other:
        other.execute("begin; lock table token_tracking_raw.schema_versions")
        command = [*COMMAND, "schema", "apply"]
        with subprocess.Popen(
            command, env={**os.environ, **database.env}, stderr=subprocess.PIPE, text=True
        ) as process:
            waiting = "select count(*) from pg_locks where not granted"
            deadline = time.monotonic() + 30
            while database.value(waiting) == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_a_reader_that_left_is_no_error(database: Database):
    command = f"{' '.join(COMMAND)} load - --format jsonl | head -c 0"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={**os.environ, **database.env},
        input=ROWS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert database.value(COUNT) == 2


def test_the_embedded_server_by_itself(open_folder: Path):
    try:
        assert run("db", "url", folder=open_folder).err == (
            "Error: no server runs in .token-tracking/postgres\n"
        )
        first = run("db", "start", folder=open_folder)
        again = run("db", "start", folder=open_folder)
        assert (first.code, again.code) == (0, 0)
        assert first.out == again.out == run("db", "url", folder=open_folder).out
        env = dict(
            line.removeprefix("export ").split("=", 1)
            for line in run("db", "url", "--env", folder=open_folder).out.splitlines()
        )
        assert run("schema", "apply", env=env).code == 0
        dsn = {"TOKEN_TRACKING_DSN": first.out.strip()}
        assert run("load", "-", "--format", "jsonl", env=dsn, stdin=ROWS).code == 0
    finally:
        stopped = run("db", "stop", folder=open_folder)
    assert stopped.err.startswith("stopped PostgreSQL")
    assert run("db", "stop", folder=open_folder).code == 0


def test_ctrl_c_that_a_library_makes_another_error_of(monkeypatch: pytest.MonkeyPatch):
    """Like some libraries that are interrupted in the middle of their import."""

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(command_line, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 130
