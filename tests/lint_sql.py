"""Check the style of dbt's SQL: sqlfluff compiles the project, for which dbt asks a database."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

from tests.support.databases import NOT_DURABLE, TEMPLATE, started_server

FOLDERS = ("models", "tests/data")


def main() -> int:
    """Run sqlfluff beside a server that lives as long as the check; return its exit code."""
    with contextmanager(started_server)(None, NOT_DURABLE) as server:
        environment = {**os.environ, **server.environment(TEMPLATE)}
        command = ["sqlfluff", "lint", "--disable-progress-bar", *FOLDERS, *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
