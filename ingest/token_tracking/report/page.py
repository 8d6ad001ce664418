"""Renders the page: one self-contained file, in which all text from the data is escaped."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Final

import vl_convert
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from . import charts, tables
from .costs import Costs, NoCosts
from .tables import Change, CostColumns, Money, Name, Share, WithoutPrice
from .top import top_of
from .trust import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .charts import Series, Spec
    from .costs import Cost
    from .figures import Build, Figures
    from .tables import Table, Value
    from .trust import Check

_VEGA_LITE: Final = "6.4"
_MINUS: Final = "\N{MINUS SIGN}"
_HUNDREDTH: Final = Decimal("0.01")
_SYMBOLS: Final = {
    Verdict.HOLDS: "✓",
    Verdict.NOTE: "i",
    Verdict.WRONG: "✗",
    Verdict.UNKNOWN: "?",
}


@dataclass(frozen=True)
class Breakdown:
    """One way to look at the days of the month: a chart with its legend, and its tables."""

    id: str
    title: str
    chart: Spec
    keys: Sequence[Series]
    parts: Table
    by_day: Table


@dataclass(frozen=True)
class CostBreakdown:
    """The costs of the days in one currency: a chart with its legend, and its table."""

    id: str
    title: str
    chart: Spec
    keys: Sequence[Series]
    by_day: Table


def page_of(figures: Figures, checks: Sequence[Check]) -> str:
    """Return the report as HTML."""
    scope = figures.scope
    period = scope.period
    month = f"{period.month:%B %Y}"
    compared = (
        f"{period.before:%B %Y}"
        if period.is_complete
        else f"the first {_days(period.before_until.toordinal() - period.before.toordinal())} of "
        f"{period.before:%B %Y}"
    )
    costs = figures.costs if isinstance(figures.costs, Costs) else None
    breakdowns = [
        Breakdown(
            word,
            f"By {word}",
            charts.by_day(
                f"Tokens a day of {month}, by {word}; the table below has the numbers.",
                items,
                cells,
                figures.days,
            ),
            charts.series_of(items),
            tables.parts(
                f"Tokens by {word}",
                word.capitalize(),
                items,
                _beside(costs, found),
                tables.MODELS_SHOWN,
            ),
            tables.series_by_day(f"Tokens by day and {word}", items, cells, figures.days),
        )
        for word, items, cells, found in (
            (
                "operation",
                figures.operations,
                figures.operation_days,
                costs.operations if costs else None,
            ),
            ("model", figures.models, figures.model_days, costs.models if costs else None),
        )
    ]
    return _rendered(
        figures=figures,
        scope=scope,
        build=scope.daily,
        month=month,
        so_far="" if period.is_complete else f"until {figures.days[-1].day:%-d %B}",
        compared=compared,
        total=figures.total,
        change=Change(figures.total.tokens, figures.tokens_before),
        busiest=max(figures.days, key=lambda day: day.tokens),
        proof=checks[0],
        breakdowns=breakdowns,
        days=tables.days(figures),
        months_chart=charts.by_month("Tokens a month; the table below has the numbers.", figures),
        months=tables.months(figures),
        tenants_chart=charts.by_tenant(
            f"Tokens of {month} by who pays; the table below has the numbers.", figures.tenants
        ),
        tenants=tables.parts(
            "Tokens by who pays",
            "Tenant",
            figures.tenants,
            _beside(costs, costs.tenants if costs else None),
            tables.TENANTS_SHOWN,
            in_chart=False,
        ),
        agents=tables.agents(figures),
        checks=checks,
        costs=costs,
        no_costs=figures.costs.reason if isinstance(figures.costs, NoCosts) else "",
        amounts=_amounts(costs.total.amounts) if costs else [],
        saved=[Money(saving.saved, saving.currency) for saving in costs.savings] if costs else [],
        priced=Share(costs.total.tokens - costs.total.unpriced_tokens, costs.total.tokens)
        if costs
        else None,
        cost_breakdowns=_cost_breakdowns(figures, costs, month) if costs else [],
        kinds=tables.kinds(costs) if costs else None,
        unpriced=tables.unpriced(costs) if costs else None,
    )


def _beside(costs: Costs | None, found: Mapping[str, Cost] | None) -> CostColumns:
    return CostColumns(found, costs.currencies if costs else ())


def _amounts(amounts: Mapping[str, Decimal]) -> list[Money]:
    return [Money(amounts[currency], currency) for currency in sorted(amounts)]


def _cost_breakdowns(figures: Figures, costs: Costs, month: str) -> list[CostBreakdown]:
    found: list[CostBreakdown] = []
    for currency in costs.currencies:
        top = top_of(costs.models_in(currency), tables.SERIES_SHOWN)
        series = charts.cost_series(top, figures.models)
        cells = [cell for cell in costs.model_days if cell.currency == currency]
        title = f"Cost by day and model, {currency}"
        found.append(
            CostBreakdown(
                f"cost-{currency}",
                title,
                charts.cost_by_day(
                    f"{currency} a day of {month}, by model; the table below has the numbers.",
                    currency,
                    series,
                    top,
                    cells,
                    figures.days,
                ),
                series,
                tables.cost_by_day(title, currency, top, cells, figures.days),
            )
        )
    return found


def empty_page_of(build: Build) -> str:
    """Return the report of a database in which nothing is recorded yet."""
    return _rendered(figures=None, build=build)


def _rendered(**values: object) -> str:
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = list[str]()
    if values["figures"] is not None:
        scripts = [_chart_library(), _file("page.js")]
    for script in scripts:
        if "</script" in script.lower() or "<!--" in script:
            message = "a script that would end its own element"
            raise ValueError(message)
    hashes = " ".join(_hash(script) for script in scripts)
    # Only scripts with these hashes run and nothing is fetched, even if the page had an injection.
    policy = "; ".join(
        [
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            f"script-src {hashes}" if hashes else "script-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return environment.get_template("page.html.jinja").render(
        **values,
        policy=policy,
        style=Markup(_file("page.css")),  # noqa: S704  # our own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # our own, checked above
        symbols=_SYMBOLS,
        palette=charts.PALETTE,
        shown=_shown,
        sort_key=_sort_key,
    )


@cache
def _chart_library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one self-contained script."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _VEGA_LITE)


def _file(name: str) -> str:
    file = resources.files("token_tracking") / "report" / "page" / name
    return file.read_text("utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _shown(value: Value) -> str:
    """Return a cell's text."""
    match value:
        case None:
            return ""
        case Name():
            return value.text or "(empty)"
        case int():
            return f"{value:,}"
        case Money():
            return _rounded(value.amount)
        case WithoutPrice():
            return f"{value.unpriced_tokens:,}"
        case Share():
            return "" if value.value is None else f"{value.value:.1%}"
        case Change(now=now, before=before):
            if value.value is None:
                return "new" if now else ""
            if now == before:
                return "±0.0%"
            shown = f"{value.value:+,.1%}" if value.value < 10 else f"{value.value:+,.0%}"
            return shown.replace("-", _MINUS)
        case str():
            return value


def _rounded(amount: Decimal) -> str:
    """Return an amount in hundredths; what is less than one of them is not shown as 0."""
    if amount and abs(amount) < _HUNDREDTH:
        return "<0.01" if amount > 0 else f">{_MINUS}0.01"
    return f"{amount:,.2f}".replace("-", _MINUS)


def _sort_key(value: Value) -> str | int | float:
    """Return the cell's sort key; cells without a number come after all numbers."""
    match value:
        case None:
            return ""
        case Name():
            return value.text
        case Money():
            return f"{value.amount:f}"
        case WithoutPrice():
            return value.unpriced_tokens
        case Share() | Change():
            return "" if value.value is None else value.value
        case _:
            return value


def _days(number: int) -> str:
    return f"{number} day{'' if number == 1 else 's'}"
