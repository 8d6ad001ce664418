"""The checks that show how far the figures can be trusted, with their findings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from .costs import NoCosts
from .tables import Column, Name, Table
from .top import top_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Figures, Scope
    from .reading import Reading
    from .tables import Value
    from .validation import Validation

ROWS_SHOWN: Final = 15


class Verdict(StrEnum):
    """The result of a check; the report shows these words."""

    HOLDS = "in order"
    NOTE = "to know"
    WRONG = "wrong"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Check:
    """One check of the figures, with its finding."""

    title: str
    verdict: Verdict
    said: str
    table: Table | None = None


@dataclass(frozen=True)
class _Proof:
    days: int
    differing_days: int
    differing_tenants: int
    tokens: int
    raw_tokens: int
    event_count: int
    raw_event_count: int


@dataclass(frozen=True)
class _Months:
    tenants: int
    differing_tenants: int


@dataclass(frozen=True)
class _CostDays:
    differing_days: int
    tokens: int
    cost_tokens: int


@dataclass(frozen=True)
class _SinceCosts:
    price_count: int


@dataclass(frozen=True)
class _SinceBuild:
    event_count: int
    correction_count: int


@dataclass(frozen=True)
class _Conflicts:
    payloads: int
    keys: int


@dataclass(frozen=True)
class _Late:
    after_a_day: int
    after_the_month: int
    tokens_after_the_month: int


@dataclass(frozen=True)
class _Unknown:
    tokens: int
    event_count: int


@dataclass(frozen=True)
class _Named:
    name: str
    event_count: int
    tokens: int | None = None


def checks(reading: Reading, figures: Figures, validation: Validation | None) -> list[Check]:
    """Return all checks of the month, those that prove the totals first."""
    scope = figures.scope
    return [
        _equals_raw(reading, scope),
        _months_equal_days(reading, figures),
        *_costs_cover_days(reading, figures),
        _last_build(reading, scope),
        _last_validation(validation),
        _conflicts(reading, scope),
        _rejections(reading, scope),
        _voids(reading, scope),
        _unknown_labels(reading, scope),
        _unknown_agents(figures),
        _late(reading, scope),
    ]


def _equals_raw(reading: Reading, scope: Scope) -> Check:
    title = "The totals equal the raw events"
    # One tenant's part of the totals does not equal all raw events.
    found = (
        None
        if scope.is_restricted
        else reading.rows_if_allowed("days_against_raw", _Proof, scope.values)
    )
    if found is None:
        return _hidden(
            title,
            scope,
            "the raw events",
            " Each dbt build compares what it changed, by tests of its own.",
        )
    [proof] = found
    if proof.differing_days:
        differ = "differs" if proof.differing_days == 1 else "differ"
        whose = f", for {_count(proof.differing_tenants, 'tenant')}" if scope.tenant is None else ""
        return Check(
            title,
            Verdict.WRONG,
            f"{_count(proof.differing_days, 'day')} of {proof.days:,} {differ}{whose}: "
            f"{proof.raw_tokens:,} tokens in {_count(proof.raw_event_count, 'raw event')}, "
            f"{proof.tokens:,} tokens in {_count(proof.event_count, 'call')} by the totals. Rows "
            "were changed past the builds, by hand or by a restore: dbt build --full-refresh "
            "recounts everything.",
        )
    each = ", tenant by tenant," if scope.tenant is None else ""
    return Check(
        title,
        Verdict.HOLDS,
        f"Each of the {_count(proof.days, 'day')} was counted again for this report{each} from "
        f"the raw events, less the voided ones, as the last build saw them: {proof.raw_tokens:,} "
        f"tokens in {_count(proof.raw_event_count, 'event')} on both sides, to the token.",
    )


def _months_equal_days(reading: Reading, figures: Figures) -> Check:
    title = "The month equals the sum of its days"
    builds = figures.scope.builds
    daily, monthly = builds["daily_token_usage"], builds["monthly_token_usage"]
    days, month = figures.total, figures.months[-1]
    [compared] = reading.rows("month_against_days", _Months, figures.scope.values)
    each = f", for each of {compared.tenants:,} tenants" if compared.tenants > 1 else ""
    if not compared.differing_tenants:
        return Check(
            title,
            Verdict.HOLDS,
            f"{month.tokens:,} tokens in {_count(month.event_count, 'call')}{each}.",
        )
    if daily.run_number != monthly.run_number:
        said = (
            f"The days are of build {daily.run_number:,}, the month of build "
            f"{monthly.run_number:,}: dbt build brings both to the same."
        )
    else:
        said = (
            "Both are of the same build, so one of them was changed past it, by hand or by a "
            "restore."
        )
    whose = (
        f" {compared.differing_tenants:,} of {compared.tenants:,} tenants' months differ."
        if compared.tenants > 1
        else ""
    )
    return Check(
        title,
        Verdict.WRONG,
        f"The month has {month.tokens:,} tokens in {_count(month.event_count, 'call')}, its days "
        f"have {days.tokens:,} in {_count(days.event_count, 'call')}.{whose} {said}",
    )


def _costs_cover_days(reading: Reading, figures: Figures) -> list[Check]:
    """Return the check of the costs, if there are any."""
    scope, costs = figures.scope, figures.costs
    if isinstance(costs, NoCosts):
        return []
    title = "The costs are of the same tokens"
    daily, cost = scope.builds["daily_token_usage"], scope.builds["daily_token_cost"]
    [compared] = reading.rows("costs_against_days", _CostDays, scope.values)
    if compared.differing_days:
        why = (
            f"The tokens are of build {daily.run_number:,}, the costs of build "
            f"{cost.run_number:,}: dbt build brings both to the same."
            if daily.run_number != cost.run_number
            else "Both are of the same build, so one of them was changed past it, by hand or by a "
            "restore."
        )
        differ = "differs" if compared.differing_days == 1 else "differ"
        return [
            Check(
                title,
                Verdict.WRONG,
                f"The days have {compared.tokens:,} tokens, the costs are of "
                f"{compared.cost_tokens:,}: {_count(compared.differing_days, 'day')} {differ}. "
                f"{why}",
            )
        ]
    priced = costs.total.tokens - costs.total.unpriced_tokens
    said = (
        f"Each token is in the costs once: {priced:,} have a price, "
        f"{costs.total.unpriced_tokens:,} have none."
    )
    # A tenant may not see how many prices there are.
    since = (
        reading.rows_if_allowed("prices_since_build", _SinceCosts, {"snapshot": cost.snapshot})
        if scope.tenant is None
        else None
    )
    if since and since[0].price_count:
        return [
            Check(
                title,
                Verdict.NOTE,
                f"{said} Since the build {_count(since[0].price_count, 'row')} of prices, aliases, "
                "rules and assignments of price lists were recorded: the next build counts them, "
                "and daily_token_cost_now already does.",
            )
        ]
    return [Check(title, Verdict.HOLDS, said)]


def _last_build(reading: Reading, scope: Scope) -> Check:
    title = "Last build"
    as_of = (
        f"All that was recorded by {scope.daily.as_of:%Y-%m-%d %H:%M} ({scope.daily.zone}) is "
        f"counted, by build {scope.daily.run_number:,}."
    )
    if scope.tenant is not None:
        # A tenant may not see how much others use, and only the next build decides who pays.
        return Check(
            title,
            Verdict.NOTE,
            f"{as_of} The next build counts what came since; daily_token_usage_now already does.",
        )
    found = reading.rows_if_allowed("since_build", _SinceBuild, scope.values)
    if found is None:
        return Check(
            title,
            Verdict.NOTE,
            f"{as_of} What came since is not for the role {scope.role} to read.",
        )
    [since] = found
    if not since.event_count and not since.correction_count:
        return Check(title, Verdict.HOLDS, f"{as_of} Nothing was recorded since.")
    return Check(
        title,
        Verdict.NOTE,
        f"{as_of} Since then {_count(since.event_count, 'event')} and "
        f"{_count(since.correction_count, 'correction')} (voids, owners of agents) were recorded, "
        "of whatever month; the next build counts them, and daily_token_usage_now already does.",
    )


def _last_validation(validation: Validation | None) -> Check:
    title = "Last validation"
    if validation is None:
        return Check(
            title,
            Verdict.UNKNOWN,
            "Not run from here: the report tells what it is given by --validation.",
        )
    verdict = Verdict.HOLDS if validation.has_no_warning else Verdict.NOTE
    return Check(title, verdict if validation.success else Verdict.WRONG, validation.sentence)


def _conflicts(reading: Reading, scope: Scope) -> Check:
    title = "Conflicts"
    found = reading.rows_if_allowed("conflicts", _Conflicts, scope.values)
    if found is None:
        return _hidden(title, scope, "conflicting payloads")
    [conflicts] = found
    if not conflicts.payloads:
        return Check(title, Verdict.HOLDS, "No call came again with another payload.")
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(conflicts.payloads, 'payload')} came under {_count(conflicts.keys, 'key')} that "
        "another payload had been recorded with. The first counts; these are kept in "
        "usage_event_conflicts.",
    )


def _rejections(reading: Reading, scope: Scope) -> Check:
    title = "Rejections"
    found = reading.rows_if_allowed("rejections", _Named, scope.values)
    if found is None:
        return _hidden(title, scope, "rejections")
    if not found:
        return Check(title, Verdict.HOLDS, "Nothing that arrived in the month was refused.")
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(sum(row.event_count for row in found), 'payload')} that arrived in the month "
        "broke a rule. They are in no total, and kept in usage_event_rejections.",
        _named_table("Why payloads were refused", "Reason", found),
    )


def _voids(reading: Reading, scope: Scope) -> Check:
    title = "Voids"
    found = reading.rows_if_allowed("voids", _Named, scope.values)
    if found is None:
        return _hidden(title, scope, "voids")
    if not found:
        return Check(title, Verdict.HOLDS, "No call of the month was taken out of the totals.")
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(sum(row.event_count for row in found), 'call')} of the month with "
        f"{sum(row.tokens or 0 for row in found):,} tokens were voided: recorded, in no total.",
        _named_table("Why calls were voided", "Reason", found),
    )


def _unknown_labels(reading: Reading, scope: Scope) -> Check:
    title = "Unknown labels"
    [unknown] = reading.rows("unknown", _Unknown, scope.values)
    if not unknown.event_count:
        return Check(title, Verdict.HOLDS, "All types and operations of the month are known ones.")
    # The list covers all tenants.
    labels = None if scope.tenant else reading.rows_if_allowed("unmapped_labels", _Named)
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(unknown.event_count, 'call')} of the month with {unknown.tokens:,} tokens count "
        "as unknown type or operation. A row in the seed label_aliases says what a label means.",
        _named_table("Labels that nobody knows, over all time", "Label", labels)
        if labels
        else None,
    )


def _unknown_agents(figures: Figures) -> Check:
    title = "Unknown agents"
    uses = [use for use in figures.agents if use.rule == "unknown_agent"]
    if not uses:
        return Check(title, Verdict.HOLDS, "Every agent had an owner when it was used.")
    tokens: dict[str, int] = {}
    calls: dict[str, int] = {}
    for use in uses:
        tokens[use.agent] = tokens.get(use.agent, 0) + use.tokens
        calls[use.agent] = calls.get(use.agent, 0) + use.event_count
    rows = [_Named(agent, calls[agent], tokens[agent]) for agent in tokens]
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(sum(calls.values()), 'call')} with {sum(tokens.values()):,} tokens went through "
        f"{_count(len(rows), 'agent')} that nobody owned at that time: who called pays, until "
        "record_agent_owner says whose it was.",
        _named_table("Agents without owner", "Agent", rows),
    )


def _late(reading: Reading, scope: Scope) -> Check:
    title = "Late events"
    found = reading.rows_if_allowed("late", _Late, scope.values)
    if found is None:
        return _hidden(title, scope, "single events")
    [late] = found
    if not late.after_a_day:
        return Check(title, Verdict.HOLDS, "Every call arrived within a day.")
    after = (
        f" {late.after_the_month:,} of them, with {late.tokens_after_the_month:,} tokens, arrived "
        "after the month had ended: an earlier report of it had less."
        if late.after_the_month
        else ""
    )
    return Check(
        title,
        Verdict.NOTE,
        f"{_count(late.after_a_day, 'call')} arrived a day or more after it happened, as loaded "
        f"history does, and counts on the day that it happened.{after}",
    )


def _hidden(title: str, scope: Scope, what: str, more: str = "") -> Check:
    said = f"The role {scope.role} may not read {what}, so this report cannot tell.{more}"
    return Check(title, Verdict.UNKNOWN, said)


def _named_table(caption: str, title: str, rows: Sequence[_Named]) -> Table:
    top = top_of(rows, ROWS_SHOWN)
    has_tokens = all(row.tokens is not None for row in rows)

    def numbers(some: Sequence[_Named]) -> list[Value]:
        tokens: list[Value] = [sum(row.tokens or 0 for row in some)] if has_tokens else []
        return [*tokens, sum(row.event_count for row in some)]

    columns = [Column("Tokens")] if has_tokens else []
    return Table(
        caption,
        [Column(title, is_number=False), *columns, Column("Calls")],
        [[Name(row.name), *numbers([row])] for row in top.first],
        [[f"{len(top.others):,} others", *numbers(top.others)]] if top.others else (),
        sorted_by=1,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
