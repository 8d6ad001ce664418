"""Runs all suites as one Great Expectations checkpoint on one snapshot."""

# Great Expectations is only partly typed; its results have no narrower type.
# ruff: noqa: ANN401
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from ..errors import QualityError
from ..target import Target
from .report import Finding, Report, SuiteReport
from .snapshot import PATIENCE, hold_snapshot
from .suites import suites

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from great_expectations.data_context.store.store import DataDocsSiteConfigTypedDict
    from sqlalchemy.engine import Connection, Engine

    from .snapshot import Snapshot
    from .suites import Check, Suite

# Great Expectations stores and shows the name of this variable, not its value. The value is not
# secret either: without host, user and password, libpq uses its own variables and files.
_URL_VARIABLE: Final = "TOKEN_TRACKING_VALIDATION_URL"
_URL: Final = "postgresql+psycopg2://?application_name=token-tracking-validate"
_MARK: Final = "/* token-tracking validate */"
_SESSION: Final = """
    select
        set_config('search_path', quote_ident(%(schema)s), true),
        set_config('timezone', 'UTC', true),
        set_config('work_mem', '64MB', true),
        set_config('jit', 'off', true),
        -- cancel a query when its client is gone
        set_config('client_connection_check_interval', '1000', true)
"""


def validate(
    folder: Path,
    *,
    schema: str = "token_tracking",
    patience: float = PATIENCE,
    on_progress: Callable[[int, int], object] = lambda _done, _all: None,
    on_wait: Callable[[], object] = lambda: None,
) -> Report:
    """Validate the database of libpq's variables, and write Data Docs to a folder.

    Args:
        folder: missing, empty, or with the Data Docs of an earlier run, which are replaced.
        schema: the schema of the warehouse.
        patience: seconds to wait for a running build to end.
        on_progress: called with the number of finished queries, and of all queries.
        on_wait: called once, before a wait.

    Raises:
        NothingToCheckError: there are no events, or no totals of them.
        QualityError: the database cannot be validated.

    """
    with _quiet():
        _require_great_expectations()
        with hold_snapshot(schema, patience=patience, on_wait=on_wait) as snapshot:
            from great_expectations.datasource.fluent.interfaces import TestConnectionError
            from great_expectations.exceptions.exceptions import GreatExpectationsError
            from sqlalchemy.exc import SQLAlchemyError

            try:
                return _run(folder, snapshot, on_progress)
            except (GreatExpectationsError, SQLAlchemyError, TestConnectionError) as error:
                message = f"{Target.of('')} cannot be validated: {str(error).partition(chr(10))[0]}"
                raise QualityError(message) from error


def _require_great_expectations() -> None:
    """Check without importing it, which takes seconds: there may be nothing to validate."""
    for module in ("great_expectations", "psycopg2", "sqlalchemy"):
        if find_spec(module) is None:
            message = (
                f"Great Expectations cannot be used, for {module} is missing: "
                "pip install 'token-tracking[quality]'"
            )
            raise QualityError(message)


def _run(folder: Path, snapshot: Snapshot, on_progress: Callable[[int, int], object]) -> Report:
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.expectations.metadata_types import FailureSeverity

    from .docs import SITE, make_room, site, tidy
    from .offending_rows import OffendingRows

    make_room(folder)
    wanted = suites()
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={SITE: site(folder)},
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        ),
    )
    source = context.data_sources.add_postgres(
        "database", connection_string=f"${{{_URL_VARIABLE}}}", create_temp_table=False
    )
    engine = source.get_execution_engine().engine
    queries = {check.query for suite in wanted for check in suite.checks}
    _prepare(engine, snapshot, len(queries), on_progress)
    definitions: list[gx.ValidationDefinition] = []
    for suite in wanted:
        expectations = context.suites.add(
            gx.ExpectationSuite(
                name=suite.name,
                expectations=[
                    OffendingRows(
                        query=_MARK + check.query,
                        rule=check.rule,
                        severity=FailureSeverity(check.severity),
                        description=check.name,
                        meta={"name": check.name, "otherwise": check.otherwise},
                    )
                    for check in suite.checks
                ],
            )
        )
        asset = source.add_query_asset(suite.name, query=suite.query)
        definitions.append(
            context.validation_definitions.add(
                gx.ValidationDefinition(
                    name=suite.name,
                    data=asset.add_batch_definition_whole_table("all rows"),
                    suite=expectations,
                )
            )
        )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name="validate",
            validation_definitions=definitions,
            result_format="COMPLETE",
        )
    )
    try:
        found = checkpoint.run()
    finally:
        for used in (engine, source.get_engine()):  # the second one tested the connection
            used.dispose()
    results = {result.suite_name: result for result in found.run_results.values()}
    reports = tuple(_report(suite, results[suite.name].results) for suite in wanted)
    warned = [report.name for report in reports if report.only_warns]
    context.update_data_docs_site(SITE, cast("DataDocsSiteConfigTypedDict", site(folder, warned)))
    # Build them once; the checkpoint's own action would do it after each suite.
    context.build_data_docs()
    tidy(folder, [suite.name for suite in wanted])
    return Report(
        database=str(Target.of("")),
        as_of=snapshot.as_of,
        docs=folder,
        suites=reports,
    )


def _prepare(
    engine: Engine, snapshot: Snapshot, queries: int, on_progress: Callable[[int, int], object]
) -> None:
    """Make every transaction of the engine read-only and use the one snapshot."""
    from sqlalchemy import event

    done: set[str] = set()

    def begin(connection: Connection) -> None:
        run = connection.exec_driver_sql
        run("set transaction isolation level repeatable read, read only")
        # A literal, since SET takes no parameters; PostgreSQL's id has only hex digits and dashes.
        run(f"set transaction snapshot '{snapshot.id}'")
        run(_SESSION, {"schema": snapshot.schema})

    def executed(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if _MARK in statement:
            done.add(statement)
            on_progress(len(done), queries)

    event.listen(engine, "begin", begin)
    event.listen(engine, "after_cursor_execute", executed)


def _report(suite: Suite, results: list[Any]) -> SuiteReport:
    by_name = {result.expectation_config.meta["name"]: result for result in results}
    return SuiteReport(
        suite.name, tuple(_finding(check, by_name[check.name]) for check in suite.checks)
    )


def _finding(check: Check, result: Any) -> Finding:
    from .offending_rows import problem_of

    found = cast("dict[str, Any]", result.result or {})
    details = found.get("details", {"columns": [], "rows": []})
    return Finding(
        name=check.name,
        severity=check.severity,
        success=bool(result.success),
        row_count=found.get("observed_value", 0),
        rows=tuple(dict(zip(details["columns"], row, strict=True)) for row in details["rows"]),
        otherwise=check.otherwise,
        problem=problem_of(result),
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Suppress the logs and warnings of Great Expectations and its libraries."""
    logger = logging.getLogger("great_expectations")
    level = logger.level
    before = os.environ.get(_URL_VARIABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        os.environ[_URL_VARIABLE] = _URL
        try:
            yield
        finally:
            logger.setLevel(level)
            os.environ.pop(_URL_VARIABLE)
            if before is not None:
                os.environ[_URL_VARIABLE] = before
