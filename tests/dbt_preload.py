"""Imported by the fork server alone: does once what every build would do again."""

import os
import tempfile
import warnings
from pathlib import Path

from tests.dbt_project import invoke

warnings.simplefilter("ignore")
with tempfile.TemporaryDirectory() as folder:
    # No server is there: the run ends before its first query, and all that it needs is loaded.
    os.environ.update(PGHOST=folder, PGDATABASE="nowhere")
    invoke(Path(folder), ["run"])
