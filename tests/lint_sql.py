"""Check the style of all SQL: that of dbt, for which it asks a database, and that of the package.

What stands between dollar quotes (bodies of procedures, `do` blocks) is text to sqlfluff: of these
files it checks the rest. It checks neither released versions of the raw schema, which must not
change, nor macros and generic tests, which dbt compiles only for a model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.support.databases import NOT_DURABLE, TEMPLATE, started_server

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "tests/data")
PACKAGE = ROOT / "ingest" / "token_tracking"
LINT = ("sqlfluff", "lint", "--disable-progress-bar")


def main() -> int:
    """Run sqlfluff, on dbt's SQL beside a server that lives as long; return its exit code."""
    versions = PACKAGE / "raw" / "versions"
    packaged = [str(file) for file in sorted(PACKAGE.rglob("*.sql")) if file.parent != versions]
    command = [*LINT, "--config", str(ROOT / "tests" / "packaged_sql.cfg"), *packaged]
    status = subprocess.run([*command, *sys.argv[1:]], check=False).returncode
    with contextmanager(started_server)(None, NOT_DURABLE) as server:
        environment = {**os.environ, **server.environment(TEMPLATE)}
        command = [*LINT, *FOLDERS, *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode or status


if __name__ == "__main__":
    sys.exit(main())
