"""The only kind of expectation used here: a query that returns the offending rows, if any."""

# Great Expectations is only partly typed; its results have no narrower type.
# ruff: noqa: ANN401
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from great_expectations.expectations.expectation import BatchExpectation
from great_expectations.render.components import (
    RenderedStringTemplateContent,
    RenderedTableContent,
)
from great_expectations.render.renderer.renderer import renderer

if TYPE_CHECKING:
    from collections.abc import Mapping

Cell = str | int | None

_HIDDEN = frozenset({"rule", "rows_in_all", "row_no"})


class OffendingRows(BatchExpectation):
    """Expect a query to return no row of `rule`.

    Expectations with the same query share one run of it: Great Expectations computes a metric once
    per batch. Its own column expectations read the table again for each sample of rows, and
    `UnexpectedRowsExpectation` runs its query twice.
    """

    query: str
    rule: str

    domain_keys: ClassVar[tuple[str, ...]] = ("batch_id",)
    success_keys: ClassVar[tuple[str, ...]] = ("query", "rule")
    metric_dependencies: ClassVar[tuple[str, ...]] = ("query.table",)

    def _validate(self, metrics: dict[str, Any], **_: object) -> dict[str, object]:
        found: list[Mapping[str, object]] = metrics["query.table"]
        mine = [_with_grain(row) for row in found if row["rule"] == self.rule]
        columns = [name for name in (mine[0] if mine else ()) if name not in _HIDDEN]
        # Not one dictionary per row: Data Docs would sort its keys.
        rows = [[_cell(row[name]) for name in columns] for row in mine]
        return {
            "success": not mine,
            "result": {
                "observed_value": mine[0]["rows_in_all"] if mine else 0,
                "details": {"columns": columns, "rows": rows},
            },
        }

    @classmethod
    @renderer(renderer_type="renderer.diagnostic.status_icon")
    def _diagnostic_status_icon_renderer(
        cls, *, result: Any, **_: object
    ) -> RenderedStringTemplateContent:
        if result.success:
            return _text("holds", "holds")
        if problem_of(result) is not None:
            return _text("not checked", "fails")
        is_warning = result.expectation_config.severity == "warning"
        return _text("warns", "warns") if is_warning else _text("fails", "fails")

    @classmethod
    @renderer(renderer_type="renderer.diagnostic.unexpected_statement")
    def _diagnostic_unexpected_statement_renderer(
        cls, *, result: Any, **_: object
    ) -> list[RenderedStringTemplateContent]:
        if result.success:
            return []
        problem = problem_of(result)
        advice = result.expectation_config.meta["otherwise"]
        return [_text(advice if problem is None else f"Not checked: {problem}", "advice")]

    @classmethod
    @renderer(renderer_type="renderer.diagnostic.observed_value")
    def _diagnostic_observed_value_renderer(cls, *, result: Any = None, **_: object) -> str:
        count = result.result.get("observed_value") if result else None
        return "" if count is None else "1 row" if count == 1 else f"{count:,} rows"

    @classmethod
    @renderer(renderer_type="renderer.diagnostic.unexpected_table")
    def _diagnostic_unexpected_table_renderer(
        cls, *, result: Any = None, **_: object
    ) -> list[RenderedTableContent] | None:
        details = result.result.get("details") if result else None
        if not details or not details["rows"]:
            return None
        # Ids are untrusted text, and Data Docs do not escape table cells.
        cells = [
            [escape("" if cell is None else str(cell)) for cell in row] for row in details["rows"]
        ]
        return [
            RenderedTableContent(
                content_block_type="table", header_row=details["columns"], table=cells
            )
        ]


def problem_of(result: Any) -> str | None:
    """Return the first line of the error that prevented an expectation from being checked."""
    raised: dict[str, Any] = result.exception_info
    for one in [raised] if "raised_exception" in raised else raised.values():
        if one["raised_exception"]:
            return str(one["exception_message"]).partition("\n")[0]
    return None


def _with_grain(row: Mapping[str, object]) -> dict[str, object]:
    """Return the row with the keys of `grain`, which differ between rules, as columns."""
    cells: dict[str, object] = {}
    for name, value in row.items():
        cells.update(value if isinstance(value, dict) else {name: value})
    return cells


def _text(text: str, of_class: str) -> RenderedStringTemplateContent:
    return RenderedStringTemplateContent(
        content_block_type="string_template",
        string_template={
            "template": "$text",
            "params": {"text": text},
            "styling": {"classes": [of_class]},
        },
    )


def _cell(value: object) -> Cell:
    """Return the value as JSON can hold it without loss: sums are integers, also beyond 2^53."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
