"""Loading files, without the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support import ROOT
from tests.support.databases import Database
from token_tracking.loading.cells import columns_of, constants_of, zone_of
from token_tracking.loading.load import Load
from token_tracking.loading.plan import Plan
from token_tracking.loading.source import Source

REAL = ROOT.parent / "shared" / "data" / "AzureLLMInferenceTrace_conv.csv"

COUNT = "select count(*) from token_tracking_raw.usage_events"


def plan(
    columns: str = "", constants: str = "tenant_id=acme", zone: str = "UTC", **rest: object
) -> Plan:
    return Plan(
        columns_of([columns] if columns else []),
        constants_of([constants] if constants else [], zone_of(zone)),
        zone_of(zone),
        **rest,
    )


def load(
    database: Database, files: Path | Sequence[Path], how: Plan | None = None, **callbacks: Callable
) -> Load:
    done = Load(how or plan(), database.url)
    paths = [files] if isinstance(files, Path) else files
    done.run([Source.of(str(path)) for path in paths], **callbacks)
    return done
