"""The version before and older schemas, taken from this repository's history."""

from __future__ import annotations

import subprocess
from contextlib import closing

import psycopg
import pytest

from tests.support import ROOT
from tests.support.databases import Database, left_out
from token_tracking.raw import schema

VERSION = "696fbdc2f1e75783b5207dfed06f007288352227"


def from_history(*words: str) -> bytes:
    """Return the output of a git command that reads the version before."""
    done = subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True)
    if done.returncode:
        left_out("the repository's history is not here: git fetch --unshallow")
    return done.stdout


def apply_tables(database: Database, newest: int) -> None:
    """Apply the tables of an older version to a database without them, and no procedures."""
    with (
        closing(psycopg.connect(database.url)) as connection,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(schema, "packaged_procedures", list)
        change = schema.apply_schema(connection, schema.packaged_versions()[:newest])
        connection.commit()
    assert change == schema.SchemaChange(0, newest)


def apply_version_before(database: Database) -> None:
    """Apply the schema of the version before, version 3, to a database without one."""
    procedures = from_history("show", f"{VERSION}:ingest/token_tracking/sql/procedures.sql")
    apply_tables(database, 3)
    with closing(database.connect()) as connection:
        connection.execute(procedures)
