"""Imported by the fork server alone: does once what every build would do again."""

import os
import tempfile
import warnings
from pathlib import Path

from tests.support.project import invoke, is_read

warnings.simplefilter("ignore")
with tempfile.TemporaryDirectory() as folder:
    # No server is there: the run ends before its first query, and all that it needs is loaded.
    os.environ.update(PGHOST=folder, PGDATABASE="nowhere")
    outcome = invoke(Path(folder), ["run"])
# The parser's threads are not in a forked child, which would wait for them if it had to parse.
if not is_read():
    message = f"the project cannot be read: {outcome.exception}"
    raise RuntimeError(message)
