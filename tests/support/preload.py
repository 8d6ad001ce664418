"""Imported by the fork server alone: does once what every build would do again."""

import functools
import os
import tempfile
import warnings
from pathlib import Path

import parsedatetime

from tests.support.project import invoke, is_read

warnings.simplefilter("ignore")
# Half of a build's time in tests is dbt's own: it reads the whole environment for each event, and
# makes the same parsers of dates for each result of a query.
for name in set(os.environ) - {"HOME", "LANG", "PATH", "PYTHONPATH", "TMPDIR"}:
    del os.environ[name]
parsedatetime.Constants = functools.cache(parsedatetime.Constants)
with tempfile.TemporaryDirectory() as folder:
    # No server is there: the run ends before its first query, and all that it needs is loaded.
    os.environ.update(PGHOST=folder, PGDATABASE="nowhere")
    outcome = invoke(Path(folder), ["run"])
# The parser's threads are not in a forked child, which would wait for them if it had to parse.
if not is_read():
    message = f"the project cannot be read: {outcome.exception}"
    raise RuntimeError(message)
