"""The dbt project inside this process: read once, and again when one of its files changes."""

# dbt's results carry no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import gc
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import BuildError, WarehouseError

if TYPE_CHECKING:
    from pathlib import Path

    from dbt.cli.main import dbtRunnerResult
    from dbt.contracts.graph.manifest import Manifest

    from .project import Warehouse

# Lines to omit: PostgreSQL's detail, which shows values of rows, and the path of a temporary file.
_LEFT_OUT = ("DETAIL:", "compiled code at")
_BASE = "model.token_tracking.int_usage__hourly"


class Scope(StrEnum):
    """What a build runs. Tests are left to `dbt build`: they need not run every few seconds."""

    ROLLUPS = "rollups"
    MODELS = "models"
    PROJECT = "project"  # including the seed, whose file is part of the project


_WORDS = {
    Scope.ROLLUPS: (
        "run",
        "--select",
        "config.materialized:token_tracking_rollup",
        "--no-populate-cache",
    ),
    Scope.MODELS: ("run",),
    Scope.PROJECT: ("build", "--resource-type", "model", "--resource-type", "seed"),
}


@dataclass
class ResidentDbt:
    """dbt's own runner; it may write to `folder`, and `variables` is the value of its --vars."""

    warehouse: Warehouse
    folder: Path
    variables: str | None = None
    _manifest: Manifest | None = None
    _fingerprint: str = ""

    def read(self) -> bool:
        """Read the project if it has changed since the last read; return whether it had.

        Raises:
            WarehouseError: the project cannot be read; the message is dbt's.

        """
        from dbt.cli.main import dbtRunner
        from dbt.contracts.graph.manifest import Manifest

        fingerprint = self.warehouse.fingerprint()
        if self._manifest is not None and fingerprint == self._fingerprint:
            return False
        outcome = dbtRunner().invoke(["parse", *self._options()])
        if not isinstance(outcome.result, Manifest):
            message = f"the dbt project cannot be read: {_one_line(str(outcome.exception))}"
            raise WarehouseError(message)
        self._manifest, self._fingerprint = outcome.result, fingerprint
        # The collector would go through the whole project in each build: a fifth of a second.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return True

    @property
    def schema(self) -> str:
        """Return the schema of the totals."""
        return self._read_manifest().nodes[_BASE].schema

    @property
    def relations(self) -> list[str]:
        """Return the names of all tables and views that dbt builds, quoted."""
        return [
            f'"{node.schema}"."{node.alias}"'
            for node in self._read_manifest().nodes.values()
            if node.resource_type == "model"
        ]

    def build(self, scope: Scope) -> None:
        """Build a part of the project.

        Raises:
            BuildError: dbt failed; the error has the failed nodes and the first one's message.

        """
        from dbt.cli.main import dbtRunner

        # Reuse the manifest: dbt stores compiled SQL in its nodes, which is the same every time.
        runner = dbtRunner(manifest=self._read_manifest())
        outcome = runner.invoke([*_WORDS[scope], *self._options()])
        if not outcome.success:
            raise _error_of(outcome)

    def _read_manifest(self) -> Manifest:
        if self._manifest is None:
            self.read()
        assert self._manifest is not None  # noqa: S101  # read() raises otherwise
        return self._manifest

    def _options(self) -> list[str]:
        return [
            f"--project-dir={self.warehouse.project}",
            f"--profiles-dir={self.warehouse.project}",
            f"--target-path={self.folder}",
            f"--log-path={self.folder}",
            # This command writes its own lines; the result tells what failed.
            "--log-level=none",
            "--log-level-file=none",
            "--no-print",
            "--no-write-json",
            "--no-partial-parse",
            "--no-use-colors",
            *(["--vars", self.variables] if self.variables else []),
        ]


def _error_of(outcome: dbtRunnerResult) -> BuildError:
    results = getattr(outcome.result, "results", None) or []
    failed = [
        (str(result.node.name), str(result.message))
        for result in results
        if result.status in {"error", "fail"}
    ]
    if failed:
        return BuildError(_one_line(failed[0][1]), tuple(node for node, _ in failed))
    return BuildError(_one_line(str(outcome.exception or "dbt does not say why")))


def _one_line(text: str) -> str:
    """Return dbt's message on one line."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_LEFT_OUT))
