"""The dbt project as a package of another one, which builds its own models on the marts."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from tests.support.commands import forked_command
from tests.support.oracle import Settings
from tests.support.warehouse import ROLLUPS, Event, Warehouse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
GUIDE = (ROOT / "docs" / "using.md").read_text()
FILES = {
    "packages.yml": f"packages:\n  - local: {ROOT}\n",
    "profiles.yml": """
billing:
  target: default
  outputs:
    default:
      type: postgres
      host: "{{ env_var('PGHOST') }}"
      port: "{{ env_var('PGPORT') | as_number }}"
      user: "{{ env_var('PGUSER') }}"
      password: "{{ env_var('PGPASSWORD', '') }}"
      dbname: "{{ env_var('PGDATABASE') }}"
      schema: token_tracking
      threads: 4
""",
    "dbt_project.yml": """
name: billing
profile: billing
flags:
  send_anonymous_usage_stats: false
vars:
  token_tracking:
    billing_timezone: Asia/Kolkata
""",
    "models/months.sql": """
{{ config(materialized='view') }}
select usage_month, sum(tokens)::bigint as tokens
from {{ ref('token_tracking', 'monthly_token_usage') }}
group by usage_month
""",
    "models/days.sql": """
{{ config(materialized='incremental') }}
select usage_date, sum(tokens)::bigint as tokens
from {{ ref('token_tracking', 'daily_token_usage') }}
{% if is_incremental() %}
where usage_date not in (select usage_date from {{ this }})
{% endif %}
group by usage_date
""",
    "models/models.yml": """
models:
  - name: months
    columns:
      - name: usage_month
        data_tests: [unique, not_null]
""",
    "seeds/prices.csv": "model,price\ngpt-4o,3\n",
}

METRICS = """
models:
  - name: spine
    time_spine: {standard_granularity_column: billed_on}
    columns: [{name: billed_on, granularity: day}]
semantic_models:
  - name: bills
    model: ref('spine')
    primary_entity: bill
    defaults: {agg_time_dimension: billed_on}
    dimensions: [{name: billed_on, type: time, type_params: {time_granularity: day}}]
    measures: [{name: bills, agg: count, expr: "1"}]
metrics:
  - {name: cost, label: Bills, type: simple, type_params: {measure: bills}}
"""


@dataclass(frozen=True)
class RootProject:
    """Another project that uses this one as a package, in its own folder."""

    folder: Path
    env: dict[str, str]

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def dbt(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run(
            [*forked_command("dbt"), "--no-use-colors", *words],
            env={**os.environ, **self.env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, done.stdout
        return done.stdout


def of_the_guide(language: str, word: str) -> str:
    """Return the guide's block in a language that contains a word."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if word in block]
    return block


@pytest.fixture
def warehouse(database: Database) -> Warehouse:
    return Warehouse(database, Settings(billing_timezone="Asia/Kolkata"))


@pytest.fixture
def project(database: Database, tmp_path: Path) -> RootProject:
    project = RootProject(tmp_path, {**database.env, "DBT_PROFILES_DIR": str(tmp_path)})
    for name, text in FILES.items():
        project.write(name, text)
    return project


def test_another_project_builds_the_marts(project: RootProject, warehouse: Warehouse) -> None:
    project.dbt("deps")
    warehouse.insert([Event("1", NOON, operation="sumarize", agent="bot")])

    refused = project.dbt("build", fails=True)
    assert "take the materializations 'seed' and 'test' from its package" in refused
    assert warehouse.rows("select to_regclass('token_tracking.usage_events')") == [(None,)]

    project.write("macros/token_tracking.sql", of_the_guide("sql", "materialization_test_postgres"))
    project.write("selectors.yml", of_the_guide("yaml", "every_build"))
    settings = FILES["dbt_project.yml"]
    project.write(
        "dbt_project.yml", f"{settings}models: {{token_tracking: {{+schema: elsewhere}}}}"
    )
    moved = project.dbt("parse", fails=True)
    assert "all are in the target's schema" in moved
    project.write("dbt_project.yml", settings)

    whole = (
        "select model, basis from token_tracking.build_state where run_no is not null order by 1"
    )
    bases = []
    for number in (2, 3):
        warehouse.insert(
            [Event(str(number), NOON + timedelta(days=number), agent="bot")],
            voids=[("acme", str(number - 1))],
            owners=[("bot", NOON + timedelta(hours=number), f"owner-{number}")],
        )
        built = project.dbt("build")
        assert "ERROR=0" in built
        assert not re.search(r"_full|unit_test|SKIP ", built)
        marts = warehouse.check()
        assert all(marts[mart] for mart in ROLLUPS), "a mart is empty, so nothing was compared"
        bases.append(warehouse.rows(whole))
        # Its own models, seed and tests use dbt's materializations.
        months = warehouse.rows("select sum(tokens) from token_tracking.months")
        assert months == [(sum(row[5] for row in marts["monthly_token_usage"]),)]
    assert bases[0] == bases[1] != [], "the second build counted everything again"
    assert warehouse.status()["int_usage__hourly"][0] == 2
    # Its incremental model added the new day, as dbt's does, and left the old one.
    assert warehouse.rows("select count(*) from token_tracking.days") == [(2,)]
    assert warehouse.rows("select model, price from token_tracking.prices") == [("gpt-4o", 3)]
    # The checks continue from what they have proved. Costs count runs of their own: their first one
    # has the next free number.
    proofs = (
        "select count(*), min(run_no), max(run_no) from token_tracking.build_proofs"
        " where {} (basis like '%\\_cost %')"
    )
    [(of_usage, *runs)] = warehouse.rows(proofs.format("not"))
    assert (of_usage > 8, runs) == (True, [2, 2])
    assert warehouse.rows(proofs.format("")) == [(2, 3, 3)]


def test_its_metrics_give_way_to_others(project: RootProject) -> None:
    project.write("models/spine.sql", "select current_date as billed_on")
    project.write("models/metrics.yml", METRICS)
    project.dbt("deps")
    refused = project.dbt("parse", fails=True)
    assert "Can't use name `cost`" in refused

    settings = of_the_guide("yaml", "usage_days")
    project.write("dbt_project.yml", FILES["dbt_project.yml"] + settings)
    assert "time spine" not in project.dbt("parse")
