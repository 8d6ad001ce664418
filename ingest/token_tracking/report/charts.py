"""The charts of a report, as Vega-Lite specifications.

Text from the data is used only in data values, never in an expression. Marks are hidden from screen
readers: the chart's description refers them to its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

import altair as alt

from .costs import exact_sum
from .tables import SERIES_SHOWN, Money
from .top import top_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .costs import CostOfDay
    from .figures import Day, Figures, Part, PartOfDay
    from .top import Top

    Spec = Mapping[str, object]

TENANTS_IN_CHART: Final = 10

# Okabe and Ito's colours, which can be told apart with any colour vision, except the yellow, which
# is invisible on white; ordered so that neighbours also differ in lightness.
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#cc79a7", "#000000")
OTHERS: Final = "#595959"
_INK: Final = "#1a1a1a"
_MUTED: Final = "#595959"
_GRID: Final = "#e3e3e3"
# Below 1,000 without a prefix: 500m would not be read as half a dollar.
_SHORT_NUMBER: Final = (
    "datum.value < 1000 ? format(datum.value, '.3~r')"
    " : replace(format(datum.value, '.3~s'), 'G', 'B')"
)


@dataclass(frozen=True)
class Series:
    """One series of a chart, and its line in the legend."""

    name: str
    colour: str


def series_of(items: Sequence[Part]) -> list[Series]:
    """Return a series for each of the greatest operations or models, and one for the others."""
    top = top_of(items, SERIES_SHOWN)
    return _with_others([part.name for part in top.first], PALETTE, len(top.others))


def cost_series(top: Top[str], items: Sequence[Part]) -> list[Series]:
    """Return the series of models by cost, in the colours that `items` have by tokens."""
    by_tokens = top_of(items, SERIES_SHOWN).first
    known = {part.name: colour for part, colour in zip(by_tokens, PALETTE, strict=False)}
    used = {known[name] for name in top.first if name in known}
    free = iter([colour for colour in PALETTE if colour not in used])
    colours = [known[name] if name in known else next(free) for name in top.first]
    return _with_others(top.first, colours, len(top.others))


def _with_others(names: Sequence[str], colours: Sequence[str], others: int) -> list[Series]:
    series = [
        Series(name or "(empty)", colour) for name, colour in zip(names, colours, strict=False)
    ]
    return [*series, *([Series(f"{others:,} others", OTHERS)] if others else [])]


def by_day(
    description: str, items: Sequence[Part], cells: Sequence[PartOfDay], all_days: Sequence[Day]
) -> Spec:
    """Return a stacked bar for each day, with the greatest series at the bottom."""
    top = top_of(items, SERIES_SHOWN)
    places = {part.name: place for place, part in enumerate(top.first)}
    sums: dict[tuple[int, int], int] = {}
    for cell in cells:
        key = (cell.day.day, places.get(cell.name, len(top.first)))
        sums[key] = sums.get(key, 0) + cell.tokens
    bars = {key: (tokens, f"{tokens:,}") for key, tokens in sums.items()}
    return _stacked(description, series_of(items), bars, all_days, "Tokens")


def cost_by_day(
    description: str,
    currency: str,
    series: Sequence[Series],
    top: Top[str],
    cells: Sequence[CostOfDay],
    all_days: Sequence[Day],
) -> Spec:
    """Return the same for costs in one currency."""
    places = {name: place for place, name in enumerate(top.first)}
    sums: dict[tuple[int, int], Decimal] = {}
    for cell in cells:
        key = (cell.day.day, places.get(cell.name, len(top.first)))
        sums[key] = exact_sum([sums.get(key, Decimal(0)), cell.amount])
    bars = {key: (float(cost), Money(cost, currency).exact) for key, cost in sums.items()}
    return _stacked(description, series, bars, all_days, f"Cost, {currency}")


def _stacked(
    description: str,
    series: Sequence[Series],
    bars: Mapping[tuple[int, int], tuple[float, str]],
    all_days: Sequence[Day],
    title: str,
) -> Spec:
    values = [
        {"day": day, "series": place, "name": series[place].name, "amount": amount, "told": told}
        for (day, place), (amount, told) in bars.items()
    ]
    return _spec(
        alt.Chart(alt.Data(values=values), description=description, height=240, width="container")
        .mark_bar(stroke="#ffffff", strokeWidth=0.6, aria=False)
        .encode(
            x=alt.X("day:O")
            .scale(domain=[day.day.day for day in all_days], paddingInner=0.15)
            .axis(title="Day of the month", labelAngle=0, labelOverlap="greedy", ticks=False),
            y=_amount_axis("amount", title),
            color=alt.Color("series:O")
            .scale(domain=[*range(len(series))], range=[one.colour for one in series])
            .legend(None),
            order=alt.Order("series:O", sort="ascending"),
            tooltip=[
                alt.Tooltip("day:O", title="Day"),
                alt.Tooltip("name:N", title="Of"),
                alt.Tooltip("told:N", title=title),
            ],
        )
    )


def by_month(description: str, figures: Figures) -> Spec:
    """Return a bar for each month, with the report's month highlighted."""
    values = [
        {
            "place": place,
            # Show the year only under its first month; the labels of 13 months are still unique.
            "label": f"{month.month:%b %Y}"
            if place == 0 or month.month.month == 1
            else f"{month.month:%b}",
            "month": f"{month.month:%B %Y}",
            "tokens": month.tokens,
            "chosen": month.month == figures.scope.period.month,
            **_told(month.tokens),
        }
        for place, month in enumerate(figures.months)
    ]
    return _spec(
        alt.Chart(alt.Data(values=values), description=description, height=200, width="container")
        .mark_bar(aria=False)
        .encode(
            x=alt.X("label:O")
            .sort(field="place", order="ascending")
            .scale(paddingInner=0.4, paddingOuter=0.2)
            .axis(
                title=None,
                labelAngle=0,
                labelOverlap=False,
                labelExpr="split(datum.label, ' ')",
                ticks=False,
            ),
            y=_amount_axis("tokens", "Tokens"),
            color=alt.condition("datum.chosen", alt.value(PALETTE[0]), alt.value("#8fa3ad")),
            tooltip=[
                alt.Tooltip("month:N", title="Month"),
                alt.Tooltip("told:N", title="Tokens"),
            ],
        )
    )


def by_tenant(description: str, tenants: Sequence[Part]) -> Spec:
    """Return a bar for each tenant, with its name above it, where it has room on a phone."""
    top = top_of([part for part in tenants if part.event_count], TENANTS_IN_CHART)
    rows = [(part.name or "(empty)", part.tokens) for part in top.first]
    if top.others:
        rows.append((f"{len(top.others):,} others", sum(part.tokens for part in top.others)))
    whole = sum(tokens for _, tokens in rows) or 1
    values = [
        {
            "place": place,
            "name": name,
            "title": f"{name if len(name) <= 40 else name[:39] + '…'}: {tokens / whole:.1%}",
            "tokens": tokens,
            "rest": place == len(top.first),
            **_told(tokens),
        }
        for place, (name, tokens) in enumerate(rows)
    ]
    base = alt.Chart().encode(
        y=alt.Y("place:O").axis(None).scale(paddingInner=0.1),
        tooltip=[alt.Tooltip("name:N", title="Tenant"), alt.Tooltip("told:N", title="Tokens")],
    )
    bars = base.mark_bar(height=12, yOffset=9, aria=False).encode(
        x=alt.X("tokens:Q").axis(title="Tokens", tickCount=4, labelExpr=_SHORT_NUMBER),
        color=alt.condition("datum.rest", alt.value(OTHERS), alt.value(PALETTE[0])),
    )
    names = base.mark_text(align="left", dy=-8, fontSize=12, color=_INK, aria=False).encode(
        x=alt.value(0), text="title:N"
    )
    return _spec(
        alt.layer(
            bars,
            names,
            data=alt.Data(values=values),
            description=description,
            width="container",
            height=38 * len(rows),
        )
    )


def _amount_axis(field: str, title: str) -> alt.Y:
    return alt.Y(f"{field}:Q").axis(title=title, tickCount=5, labelExpr=_SHORT_NUMBER)


def _told(tokens: int) -> dict[str, str]:
    """Return the number as text for the tooltip: JavaScript numbers are exact only up to 2^53."""
    return {"told": f"{tokens:,}"}


def _spec(chart: alt.TopLevelMixin) -> Spec:
    """Return the specification in the report's style, without the URL of its schema."""
    spec = cast("dict[str, object]", chart.to_dict())
    del spec["$schema"]
    return {**spec, "config": _CONFIG}


_CONFIG: Final = {
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": _MUTED,
        "titleColor": _MUTED,
        "titleFontWeight": "normal",
        "gridColor": _GRID,
        "domainColor": _MUTED,
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "axisX": {"grid": False},
}
