"""The output of commands: no text from data can control a terminal, a pipe or a log."""

from __future__ import annotations

import ast
import json
import logging
import os
import pty
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import ROOT
from tests.support.commands import forked_command
from tests.support.databases import Database, fresh_database
from tests.support.project import DbtProject
from token_tracking.client.logs import SafeLogger
from token_tracking.escapes import escaped, json_text, likeness, spelled_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PACKAGE = ROOT / "ingest" / "token_tracking"
# The title, the whole screen, an 8-bit introducer, a line of its own, both directions, no ink.
EVIL = "\x1b]0;pwned\x07\x1b[2J\x9b31m\r\n\t\x7fa\u202eb\u2066c\u200bd\u2028e"
SHOWN = r"\x1b]0;pwned\x07\x1b[2J\x9b31m\r\n\t\x7fa\u202eb\u2066c\u200bd\u2028e"
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
# What rich itself writes to a terminal: colours, the cursor of a progress bar, its line's end.
OURS = re.compile(r"\x1b\[[0-9;]*m|\r?\x1b\[(?:1A|2K|\?25[lh])|\r(?=\n)")
COLUMNS = (
    "(tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id, occurred_at)"
)


def on_a_pipe(words: list[str], env: Mapping[str, str], folder: Path) -> str:
    done = subprocess.run(words, env=env, cwd=folder, check=False, capture_output=True, timeout=120)
    return (done.stdout + done.stderr).decode()


def on_a_terminal(words: list[str], env: Mapping[str, str], folder: Path) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words, env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 1 << 16):
                said += more
        except OSError:  # how a Linux terminal signals its end
            pass
        process.wait(120)
    os.close(ours)
    return OURS.sub("", said.decode())


@pytest.fixture(scope="module")
def built(server, tmp_path_factory) -> Iterator[Database]:
    """Totals of usage whose every text is a terminal control sequence, and an older table."""
    for database in fresh_database(server):
        with closing(database.connect()) as connection:
            connection.execute(
                f"insert into token_tracking_raw.usage_events {COLUMNS}"
                " values (%(evil)s, %(evil)s, 7, %(evil)s, %(evil)s, %(evil)s, %(evil)s, now()),"
                " ('acme', 'k', 7, 'llm', 'query', %(evil)s, %(evil)s, now())",
                {"evil": EVIL},
            )
            connection.execute(
                "create table daily (tenant_id text, usage_date date, tokens bigint)"
            )
            connection.execute("insert into daily values (%s, '2026-03-01', 7)", (EVIL,))
        project = DbtProject(database.env, tmp_path_factory.mktemp("dbt"))
        project.must("seed")
        project.must("run")
        with closing(database.connect()) as connection:
            for mart in ("hourly", "daily", "monthly"):
                connection.execute(f"update token_tracking.{mart}_token_usage set tokens = 8")
        yield database


COMMANDS: dict[str, list[str]] = {
    "compare": ["compare", "--daily", "daily"],
    "compare, for programs": ["compare", "--daily", "daily", "--format", "json"],
    "compare, a name of a table": ["compare", "--daily", EVIL],
    "compare, a wrong use": ["compare", "--daily", "daily", "--since", EVIL],
    "db": ["db", "url", "--folder", EVIL],
    "load": ["load", f"{EVIL.replace('/', '')}.csv"],
    "load, a column": ["load", "columns.csv", "--columns", "tokens=other"],
    "no command": [EVIL],
    "prices, a wrong amount": ["prices", "set", EVIL, EVIL, f"input={EVIL}"],
    "prices, a wrong time": ["prices", "set", EVIL, EVIL, "input=1", "--from", EVIL],
    "prices, a provider": ["prices", "import", "--providers", EVIL.replace(",", "")],
    "prices, a model": ["prices", "show", EVIL],
    "prices, names": ["prices", "suggest"],
    "prices, a name": ["prices", "suggest", "--accept", EVIL],
    "prices, set": ["prices", "set", EVIL[:60], EVIL, "input=1", "--note", EVIL],
    "refresh": ["refresh", "--once", "--vars", json.dumps({"billing_timezone": EVIL})],
    "refresh, for programs": [
        *("refresh", "--once", "--format", "json"),
        *("--vars", json.dumps({"billing_timezone": EVIL})),
    ],
    "report": ["report", "--out", f"{EVIL}.html"],
    "report, a tenant": ["report", "--out", "report.html", "--tenant", EVIL + EVIL],
    "report, a validation": ["report", "--out", "x.html", "--validation", f"{EVIL}.csv"],
    "schema": ["schema", "apply"],
    "spool status": ["spool", "status"],
    "spool flush": ["spool", "flush"],
    "validate": ["validate"],
    "validate, for programs": ["validate", "--format", "json"],
}
ENVIRONMENTS: dict[str, Callable[[Database], dict[str, str]]] = {
    "schema": lambda database: {"TOKEN_TRACKING_DSN": f"host=/nowhere dbname='{EVIL}'"},
    "spool flush": lambda database: {"PGUSER": EVIL},
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, on_a_pipe) for name in COMMANDS),
        *((name, on_a_terminal) for name in COMMANDS if not name.endswith("for programs")),
    ],
)
def test_no_text_of_data_commands_a_terminal(built: Database, tmp_path: Path, name: str, said: Any):
    row = json.dumps({"tenant_id": "t", "tokens": 1})
    (tmp_path / f"{EVIL}.csv").write_text(f"tenant_id,tokens,{row!r}\nt,x,1\n{EVIL!r},y,1\n")
    (tmp_path / "columns.csv").write_text(f'"{EVIL}",tokens\n1,2\n')
    spool = tmp_path / f"spool{EVIL}"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(PACKAGE.parent),
        "TERM": "xterm-256color",
        "COLUMNS": "400",
        "TOKEN_TRACKING_SPOOL_DIR": str(spool),
        **built.env,
        **ENVIRONMENTS.get(name, lambda database: {})(built),
    }
    words = [*forked_command(), *COMMANDS[name]]
    shown = said(words, env, tmp_path)
    assert FORBIDDEN.search(shown.replace("\r\n", "\n")) is None, repr(shown)
    assert "Traceback" not in shown
    for document in re.findall(r"^\{.*?^\}$|^\{.*\}$", shown, re.MULTILINE | re.DOTALL):
        if name.endswith("for programs") and document.count("\n{") == 0:
            json.loads(document)
    if name in {"compare", "validate"}:
        assert SHOWN in re.sub(r"[\s│]", "", shown)


def test_what_looks_alike_is_escaped_apart():
    alike = [
        "acme",
        "acme ",
        "Acme",
        "acme\u200b",
        "acm\u0435",
        "acme\\u200b",
        "acme\u00a0",
        "acme\ufe0f",
    ]
    assert len({spelled_out(one) for one in alike}) == len(alike)
    assert all(spelled_out(one).isascii() for one in alike)
    assert spelled_out("a  b ") == r"a \x20b\x20"
    assert len({escaped(one) for one in alike}) == len(alike)
    assert escaped("Ünïcode, 日本語 and 'quotes'") == "Ünïcode, 日本語 and 'quotes'"
    assert escaped(EVIL) == SHOWN
    assert escaped("\udc9b\ud800\U000e0041") == r"\udc9b\ud800\U000e0041"
    for one in ("acme ", "ACME", "a\u200bcme", "acme\ufe0f", "\uff41cme"):
        assert likeness(one) == "acme"
    assert likeness("caf\u00e9") == likeness("cafe\u0301") == likeness("CAF\u00c9")
    assert likeness("caf\u00e9") != likeness("cafe")


def test_json_is_printable_ascii_and_the_same_value():
    value = {EVIL: [EVIL, "\ud800", "café"]}
    text = json_text(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value


def test_a_log_line_is_one_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        SafeLogger("token_tracking.test").error("%s of %d: %s", EVIL, 3, ValueError(EVIL))
    assert caplog.messages == [f"{SHOWN} of 3: {SHOWN}"]


def test_commands_print_through_one_door():
    """Only terminal.py writes to a stream, or creates a console that would."""
    writes = {"print", "echo", "secho", "print_json", "Console", "Live", "basicConfig", "input"}
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in writes:
                    found.append((file.name, name))
                case ast.Call(func=ast.Attribute(attr=name)) if name in writes:
                    found.append((file.name, name))
                case ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr")
                ):
                    found.append((file.name, "sys"))
                case ast.Call(func=ast.Name(id="Progress"), keywords=keywords):
                    if "console" not in {keyword.arg for keyword in keywords}:
                        found.append((file.name, "Progress"))
                case ast.ImportFrom(module="rich.text" | "rich.console" | "rich.markup"):
                    if file.name != "terminal.py":
                        found.append((file.name, "rich"))
    # At the interpreter's end nothing can be imported; the line contains only constant text.
    assert {name for name, _ in found} == {"__init__.py", "terminal.py"}, found
    assert found.count(("__init__.py", "sys")) == 1
