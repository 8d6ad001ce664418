"""A warehouse that the project built before it knew prices, built by this one."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import forked_command
from tests.support.oracle import Settings
from tests.support.previous import apply_tables, from_history
from tests.support.price_rows import of_input
from tests.support.warehouse import Event, Warehouse
from token_tracking.raw.schema import apply_schema

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.project import DbtProject

WITHOUT_PRICES = "5de32db1653037fda42e877384efa57d1c5a1af2"
VERSION_OF_SCHEMA = 8
PARTS = ("dbt_project.yml", "profiles.yml", "selectors.yml", "macros", "models", "seeds")
READ = ("usage_events", "hourly_token_usage", "daily_token_usage", "monthly_token_usage")
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def older_project(tmp_path: Path) -> Path:
    """The dbt project of that version."""
    folder = tmp_path / "older"
    archive = from_history("archive", "--format=zip", WITHOUT_PRICES, *PARTS)
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
    return folder


def test_a_warehouse_without_prices_gets_costs(
    database: Database, older_project: Path, project: DbtProject
) -> None:
    """Its totals stay as they are, and so do the views of others on them."""
    with closing(database.connect()) as connection:
        connection.execute("drop schema token_tracking_raw cascade")
    apply_tables(database, VERSION_OF_SCHEMA)
    warehouse = Warehouse(database, Settings(aliases={}))
    warehouse.insert(
        [Event(str(hours), NOON + timedelta(hours=hours), agent="bot") for hours in (0, 1, 700)],
        owners=[("bot", NOON + timedelta(hours=1), "owner")],
    )
    subprocess.run(
        [*forked_command("dbt"), "--quiet", "run"],
        env={**os.environ, **database.env, "DBT_PROFILES_DIR": str(older_project)},
        cwd=older_project,
        check=True,
    )
    before = warehouse.marts()
    assert "daily_token_cost" not in before
    with closing(warehouse.connect()) as connection:
        for mart in READ:
            connection.execute(
                f"create view public.on_{mart} as select * from token_tracking.{mart}"  # type: ignore[arg-type]
            )
    seen = [warehouse.rows(f"select * from public.on_{mart} order by 1, 2") for mart in READ]
    assert all(seen)

    with closing(warehouse.connect(autocommit=False)) as connection:
        apply_schema(connection)
        connection.commit()
    warehouse.record("record_model_prices", *of_input(2, hours=-1000))
    project.must("run")
    after = warehouse.check()
    assert {mart: after[mart] for mart in before} == before
    assert any(row[-2] for row in after["monthly_token_cost"])
    assert [
        warehouse.rows(f"select * from public.on_{mart} order by 1, 2") for mart in READ
    ] == seen
    # The next build goes on from there.
    warehouse.insert([Event("new", NOON + timedelta(hours=701), agent="bot")])
    project.must("build", "--exclude", "resource_type:unit_test", "label_aliases")
    warehouse.check()
