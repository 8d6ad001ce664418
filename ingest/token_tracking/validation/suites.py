"""The expectations of raw events and marts: each one's query, and what to do if it fails.

The SQL here is built from constants of this module and names of tables, never from data.
"""

# ruff: noqa: S608

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final, Literal

from ..event.fields import MAX_TEXT, MAX_TOKENS, PART_FIELDS, PARTS
from ..event.labels import Operation, TokenType
from ..marts.recount import recounted_events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Severity = Literal["critical", "warning"]

ROWS_SHOWN: Final = 10
_LARGEST_FIRST: Final = "abs(difference) desc nulls last"


@dataclass(frozen=True)
class Check:
    """One expectation: `query` returns no row of `rule`.

    `name` states the property, `otherwise` what a row means and what to do about it.
    """

    name: str
    otherwise: str
    query: str
    rule: str
    severity: Severity = "critical"


@dataclass(frozen=True)
class Suite:
    """The expectations over one relation of the session's search path."""

    name: str
    relation: str
    checks: tuple[Check, ...]

    @property
    def query(self) -> str:
        """Return the query of the suite's relation, for Data Docs."""
        return f"select * from {self.relation}"


@dataclass(frozen=True)
class RowRule:
    """A rule for each single row of a table; the conditions are SQL, and NULL breaks them."""

    name: str
    holds: str
    found: str
    allowed: str
    otherwise: str | None = None


def suites() -> tuple[Suite, ...]:
    """Return all suites, raw events first."""
    return (_raw_events(), _raw_to_marts(), *(_mart(mart) for mart in MARTS))


def _found_by(
    name: str,
    otherwise: str,
    severity: Severity = "critical",
    order: str = "rule",
    **values: str,
) -> Check:
    """Return the expectation whose query, with these values, is in the file of its name."""
    query = f"select '{name}' as rule, found.* from ({_file(name, **values)}) as found"
    return Check(name, otherwise, _limited(query, order), name, severity)


def _file(name: str, **values: str) -> str:
    file = resources.files("token_tracking.validation").joinpath("sql", f"{name}.sql")
    text = file.read_text("utf-8").strip()
    for place, value in values.items():
        text = text.replace(f"{{{place}}}", value)
    return text


def _limited(query: str, order: str = "rule") -> str:
    """Limit a query to the first rows of each rule in an order, each with the total number."""
    return f"""
        select * from (
            select
                offending.*,
                count(*) over (partition by rule) as rows_in_all,
                row_number() over (partition by rule order by {order}) as row_no
            from ({query}) as offending
        ) as numbered
        where row_no <= {ROWS_SHOWN}
    """


def _row_checks(
    relation: str, key: Sequence[str], rules: Sequence[RowRule], otherwise: str
) -> list[Check]:
    """Return an expectation for each rule; all of them share one scan of the table."""
    all_hold = " and ".join(f"({rule.holds})" for rule in rules)
    values = ", ".join(
        f"('{rule.name}', {rule.holds}, ({rule.found})::text, '{rule.allowed}')" for rule in rules
    )
    columns = ", ".join(f"one.{column}" for column in key)
    query = f"""
        select rules.rule, {columns}, rules.found, rules.allowed
        from {relation} as one
        cross join lateral (values {values}) as rules (rule, holds, found, allowed)
        where ({all_hold}) is not true and rules.holds is not true
    """
    limited = _limited(query)
    return [Check(rule.name, rule.otherwise or otherwise, limited, rule.name) for rule in rules]


def _type_check(relation: str, types: Mapping[str, str], otherwise: str) -> Check:
    """Return the expectation that the columns have the contract's types."""
    name = "columns_have_the_contracts_types"
    values = ", ".join(f"('{column}', '{of_type}')" for column, of_type in types.items())
    query = f"""
        select
            '{name}' as rule,
            contract.column_name,
            coalesce(format_type(found.atttypid, found.atttypmod), 'missing') as found,
            contract.column_type as allowed
        from (values {values}) as contract (column_name, column_type)
        left join pg_attribute as found
            on found.attrelid = to_regclass('{relation}')
            and found.attname = contract.column_name
            and not found.attisdropped
        where format_type(found.atttypid, found.atttypmod) is distinct from contract.column_type
    """
    return Check(name, otherwise, _limited(query), name)


def _unique_check(relation: str, key: Sequence[str], name: str, otherwise: str) -> Check:
    columns = ", ".join(key)
    query = f"""
        select '{name}' as rule, {columns}, count(*) as found, '1 row' as allowed
        from {relation}
        group by {columns}
        having count(*) > 1
    """
    return Check(name, otherwise, _limited(query), name)


_RAW: Final = "token_tracking_raw.usage_events"
_RAW_TYPES: Final = {
    "tenant_id": "text",
    "idempotency_key": "text",
    "tokens": "bigint",
    "token_type": "text",
    "operation": "text",
    "model": "text",
    "agent_id": "text",
    "conversation_id": "text",
    "collection_id": "text",
    "input_tokens": "bigint",
    "output_tokens": "bigint",
    "metadata": "jsonb",
    "occurred_at": "timestamp with time zone",
    "recorded_at": "timestamp with time zone",
    "ingest_xid": "bigint",
    "provider": "text",
    "service_tier": "text",
    "cache_read_tokens": "bigint",
    "cache_write_tokens": "bigint",
    "cache_write_long_tokens": "bigint",
    "reasoning_tokens": "bigint",
}
_TEXT_SIZE: Final = f"1 to {MAX_TEXT} characters"
_TOKENS: Final = f"0 to {MAX_TOKENS}"
_PARTS: Final = (
    "format('%s input + %s output, of %s', one.input_tokens, one.output_tokens, one.tokens)"
)
_KINDS: Final = tuple(name for name in PART_FIELDS if name not in PARTS["tokens"])
_KINDS_SHOWN: Final = (
    "format('%s read + %s written of %s input, %s long of %s written, %s reasoning of %s output',"
    " one.cache_read_tokens, one.cache_write_tokens, one.input_tokens, one.cache_write_long_tokens,"
    " one.cache_write_tokens, one.reasoning_tokens, one.output_tokens)"
)
# \x0b, as \v is the letter v before PostgreSQL 17.
_SPACE: Final = r"e' \t\n\r\f\x0b'"
_LONGEST_TEXT: Final = (
    "greatest(length(one.token_type), length(one.operation), length(one.model),"
    " length(one.conversation_id), length(one.collection_id), length(one.provider),"
    " length(one.service_tier))"
)
_RAW_RULES: Final = (
    RowRule(
        "tenant_id_is_of_1_to_255_characters",
        f"length(one.tenant_id) between 1 and {MAX_TEXT}",
        "length(one.tenant_id)",
        _TEXT_SIZE,
    ),
    RowRule(
        "idempotency_key_is_of_1_to_255_characters",
        f"length(one.idempotency_key) between 1 and {MAX_TEXT}",
        "length(one.idempotency_key)",
        _TEXT_SIZE,
    ),
    RowRule(
        "agent_id_is_of_1_to_255_characters",
        f"one.agent_id is null or length(one.agent_id) between 1 and {MAX_TEXT}",
        "length(one.agent_id)",
        f"{_TEXT_SIZE}, or null",
    ),
    RowRule(
        "other_text_is_of_at_most_255_characters",
        f"{_LONGEST_TEXT} <= {MAX_TEXT}",
        _LONGEST_TEXT,
        f"at most {MAX_TEXT} characters",
    ),
    RowRule(
        "labels_are_there_and_clean",
        f'one.token_type = lower(btrim(one.token_type, {_SPACE}) collate "C")'
        f' and one.operation = lower(btrim(one.operation, {_SPACE}) collate "C")',
        "format('%L, %L', left(one.token_type, 60), left(one.operation, 60))",
        "lower case without outer space",
    ),
    RowRule(
        "tokens_are_0_to_2_to_the_40",
        f"one.tokens between 0 and {MAX_TOKENS}",
        "one.tokens",
        _TOKENS,
    ),
    RowRule(
        "input_tokens_are_0_to_2_to_the_40",
        f"one.input_tokens is null or one.input_tokens between 0 and {MAX_TOKENS}",
        "one.input_tokens",
        f"{_TOKENS}, or null",
    ),
    RowRule(
        "output_tokens_are_0_to_2_to_the_40",
        f"one.output_tokens is null or one.output_tokens between 0 and {MAX_TOKENS}",
        "one.output_tokens",
        f"{_TOKENS}, or null",
    ),
    RowRule(
        "parts_are_not_above_tokens",
        "coalesce(one.input_tokens, 0)::float8 + coalesce(one.output_tokens, 0)::float8"
        " <= one.tokens",
        _PARTS,
        "at most tokens",
    ),
    RowRule(
        "kinds_are_0_to_2_to_the_40",
        " and ".join(
            f"(one.{kind} is null or one.{kind} between 0 and {MAX_TOKENS})" for kind in _KINDS
        ),
        _KINDS_SHOWN,
        f"{_TOKENS}, or null",
    ),
    RowRule(
        "kinds_are_not_above_their_wholes",
        " and ".join(
            f"(num_nonnulls({', '.join(f'one.{part}' for part in parts)}) = 0"
            f" or {' + '.join(f'coalesce(one.{part}, 0)::float8' for part in parts)}"
            f" <= coalesce(one.{whole}, -1))"
            for whole, parts in PARTS.items()
            if whole != "tokens"
        ),
        _KINDS_SHOWN,
        "at most what they are parts of",
    ),
    RowRule(
        "metadata_is_an_object",
        "jsonb_typeof(one.metadata) = 'object'",
        "jsonb_typeof(one.metadata)",
        "object",
    ),
    RowRule(
        "occurred_at_is_from_2000_to_5_minutes_ahead",
        "one.occurred_at >= '2000-01-01 00:00+00'"
        " and one.occurred_at <= now() + interval '5 minutes'",
        "one.occurred_at",
        "2000-01-01 UTC to 5 minutes ahead",
    ),
    RowRule(
        "recorded_at_is_past",
        "one.recorded_at <= now() and isfinite(one.recorded_at)",
        "one.recorded_at",
        "not later than now",
    ),
    RowRule(
        "ingest_xid_is_of_this_cluster",
        "one.ingest_xid > 0"
        " and one.ingest_xid < (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint)",
        "one.ingest_xid",
        "a transaction of this cluster",
        "The row comes from a dump of another cluster: run token-tracking schema apply, which "
        "stamps it, then dbt build.",
    ),
)


def _raw_events() -> Suite:
    key = ("tenant_id", "idempotency_key")
    return Suite(
        "raw_events",
        _RAW,
        (
            _type_check(
                _RAW,
                _RAW_TYPES,
                "The raw table was altered by hand: put the column back, then run "
                "token-tracking schema apply.",
            ),
            _unique_check(
                _RAW,
                key,
                "one_event_per_tenant_and_key",
                "An event is recorded twice, so the primary key is gone or its index damaged: "
                "delete what came later, restore the key, run dbt build --full-refresh.",
            ),
            *_row_checks(
                _RAW,
                key,
                _RAW_RULES,
                "The procedures refuse such an event, so something else wrote it: take that "
                "writer's rights away, void the event and record it again under another key.",
            ),
        ),
    )


_REBUILD: Final = (
    "The mart was changed by something else than a build, or raw events were edited or deleted: "
    "find out who can write there, then run dbt build --full-refresh."
)


def _raw_to_marts() -> Suite:
    events = recounted_events(
        snapshot="(select base.snapshot from base)", zone="(select base.billing_timezone from base)"
    )
    from_raw = _limited(_file("raw_to_marts", recounted_events=events), _LARGEST_FIRST)
    return Suite(
        "raw_to_marts",
        "build_status",
        (
            _found_by(
                "every_total_is_of_one_build",
                "A rollup is behind the others, or label_aliases was changed since it was built, "
                "so it was not compared: run dbt build.",
                rollups=_listed(ROLLUPS),
            ),
            *(
                Check(
                    f"{mart.name}_equals_raw_events",
                    f"{_REBUILD} Both sums are as of the build's snapshot.",
                    from_raw,
                    mart.name,
                )
                for mart in USAGE_MARTS
            ),
            Check(
                "daily_token_cost_equals_raw_events",
                f"{_REBUILD} Both are as of the build's snapshots, of events and of prices. Or a "
                "price is of requests above a size that the variable context_bounds does not list.",
                from_raw,
                "daily_token_cost",
            ),
            _found_by("daily_equals_sum_of_hourly", _REBUILD, order=_LARGEST_FIRST),
            _found_by("monthly_equals_sum_of_daily", _REBUILD, order=_LARGEST_FIRST),
            _found_by("monthly_cost_equals_sum_of_daily", _REBUILD, order=_LARGEST_FIRST),
            _found_by("billed_tokens_are_those_of_daily", _REBUILD, order=_LARGEST_FIRST),
            _found_by(
                "tenant_token_usage_equals_sum_of_daily",
                "The view was changed by something else than a build, or daily_token_usage was: "
                "find out who can write there, drop the view, then run dbt build --full-refresh.",
                order=_LARGEST_FIRST,
            ),
            _found_by(
                "labels_are_known",
                "Usage with these labels counts as unknown: add a row to seeds/label_aliases.csv, "
                "or the label to the lists of dbt_project.yml, and run dbt build.",
                "warning",
            ),
            _found_by(
                "ids_do_not_look_alike",
                "These ids differ in nothing but case, white space, invisible characters or how "
                "Unicode writes a letter: possible, but each is counted by itself. Find the "
                "service that writes the wrong one, and void and record again what is to move.",
                "warning",
                "id_kind, likeness, id",
            ),
        ),
    )


@dataclass(frozen=True)
class Mart:
    """A rollup that people read: its grain's columns with their types, and what holds in it."""

    name: str
    grain: Mapping[str, str]
    sums: Mapping[str, str]
    rules: tuple[RowRule, ...]
    checks: tuple[Check, ...] = ()
    # columns of the grain that can be null
    nullable: frozenset[str] = frozenset()


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"'{label}'" for label in labels)


def _labels_check(column: str, of_type: str, labels: Sequence[str]) -> Check:
    """Return the expectation that the type has all labels of this package."""
    name = f"{column}_has_the_labels_of_the_package"
    query = f"""
        select '{name}' as rule, '{of_type}' as enum_type, wanted.label, 'missing' as found
        from unnest(array[{_listed(labels)}]) as wanted (label)
        where not exists (
            select from pg_enum
            where pg_enum.enumtypid = to_regtype('{of_type}') and pg_enum.enumlabel = wanted.label
        )
    """
    return Check(
        name,
        "Usage with this label counts as unknown: the warehouse was built by another version of "
        "the project than this package is of; update the older one and run dbt build.",
        _limited(query),
        name,
    )


_LABELS: Final = {
    "tenant_id": "text",
    "token_type": "token_type",
    "operation": "operation_type",
    "model": "text",
}


def _of_usage(
    name: str,
    grain: Mapping[str, str],
    *,
    has_parts: bool = True,
    rules: tuple[RowRule, ...] = (),
    checks: tuple[Check, ...] = (),
) -> Mart:
    """Return a mart that counts events and their tokens."""
    parts = PART_FIELDS if has_parts else ()
    of_events = (
        RowRule("counts_events", "one.event_count > 0", "one.event_count", "1 or more"),
        RowRule(
            "tokens_are_what_the_events_can_have",
            f"one.tokens between 0 and one.event_count::numeric * {MAX_TOKENS}",
            "one.tokens",
            f"0 to event_count * {MAX_TOKENS}",
        ),
    )
    of_parts = (
        RowRule(
            "parts_are_not_above_tokens",
            "one.input_tokens >= 0 and one.output_tokens >= 0"
            " and one.input_tokens::numeric + one.output_tokens <= one.tokens",
            _PARTS,
            "0 to tokens",
        ),
        RowRule(
            "kinds_are_not_above_their_wholes",
            f"least({', '.join(f'one.{kind}' for kind in _KINDS)}) >= 0"
            " and one.cache_read_tokens + one.cache_write_tokens <= one.input_tokens"
            " and one.cache_write_long_tokens <= one.cache_write_tokens"
            " and one.reasoning_tokens <= one.output_tokens",
            _KINDS_SHOWN,
            "0 to what they are parts of",
        ),
    )
    sums = dict.fromkeys(("tokens", *parts, "event_count"), "bigint")
    return Mart(name, grain, sums, (*of_events, *(of_parts if has_parts else ()), *rules), checks)


def _of_costs(name: str, grain: Mapping[str, str], *rules: RowRule) -> Mart:
    """Return a mart that says what tokens cost."""
    of_costs = (
        RowRule("counts_tokens", "one.tokens > 0", "one.tokens", "1 or more"),
        RowRule("cost_is_not_negative", "one.cost >= 0", "one.cost", "0 or more"),
        RowRule(
            "all_tokens_have_a_price_or_none_has",
            "one.unpriced_tokens = case when one.currency is null then one.tokens else 0 end"
            " and (one.currency is not null or one.cost = 0)",
            "format('%s tokens, %s unpriced, cost %s, currency %s', one.tokens,"
            " one.unpriced_tokens, one.cost, coalesce(one.currency, 'none'))",
            "a currency, or all tokens unpriced and cost 0",
        ),
    )
    sums = {"tokens": "bigint", "cost": "numeric", "unpriced_tokens": "bigint"}
    return Mart(
        name,
        {**grain, **_PRICED},
        sums,
        (*of_costs, *rules),
        nullable=frozenset({"currency"}),
    )


_PRICED: Final = {
    "tenant_id": "text",
    "token_type": "token_type",
    "operation": "operation_type",
    "provider": "text",
    "model": "text",
    "token_kind": "text",
    "service_tier": "text",
    "price_list": "text",
    "is_billed": "boolean",
    "currency": "text",
}
_IS_FIRST_OF_MONTH: Final = RowRule(
    "usage_month_is_a_first_day",
    "extract(day from one.usage_month) = 1",
    "one.usage_month",
    "the first of a month",
)
USAGE_MARTS: Final = (
    _of_usage(
        "hourly_token_usage",
        {"usage_hour": "timestamp with time zone", "usage_date": "date", **_LABELS},
        rules=(
            RowRule(
                "usage_hour_starts_an_hour",
                "one.usage_hour = date_trunc('hour', one.usage_hour, 'UTC')",
                "one.usage_hour",
                "an hour of UTC",
            ),
            RowRule(
                "usage_date_is_a_date_of_the_hour",
                "abs(one.usage_date - (one.usage_hour at time zone 'UTC')::date) <= 1",
                "one.usage_date",
                "the date somewhere on earth in that hour",
            ),
        ),
        checks=(
            _labels_check("token_type", "token_type", [*TokenType, "unknown"]),
            _labels_check("operation", "operation_type", [*Operation, "unknown"]),
        ),
    ),
    _of_usage(
        "daily_token_usage",
        {"usage_date": "date", **_LABELS},
        checks=(
            _found_by(
                "tenant_is_within_ten_times_its_usual_day",
                "The tenant used over ten times its median day of the four weeks before: possible, "
                "but ask it, or look for keys with a retry counter in them.",
                "warning",
            ),
            _found_by(
                "day_is_like_the_four_weeks_before",
                "All tenants together used over three times the highest or under a third of the "
                "lowest day of the four weeks before: possible, but see whether a service sends "
                "twice or has stopped, and what waits in spools.",
                "warning",
            ),
        ),
    ),
    _of_usage(
        "monthly_token_usage",
        {"usage_month": "date", **_LABELS},
        rules=(_IS_FIRST_OF_MONTH,),
    ),
    _of_usage(
        "daily_agent_token_usage",
        {
            "usage_date": "date",
            "tenant_id": "text",
            "requester_tenant_id": "text",
            "agent_id": "text",
            "attribution_rule": "attribution_rule",
        },
        has_parts=False,
        rules=(
            RowRule(
                "who_pays_follows_the_rule",
                "one.attribution_rule = 'agent_owner' or one.attribution_rule = 'unknown_agent'"
                " and one.tenant_id = one.requester_tenant_id",
                "one.attribution_rule",
                "agent_owner, or unknown_agent where the requester pays",
            ),
        ),
    ),
)
COST_MARTS: Final = (
    _of_costs("daily_token_cost", {"usage_date": "date"}),
    _of_costs("monthly_token_cost", {"usage_month": "date"}, _IS_FIRST_OF_MONTH),
)
MARTS: Final = (*USAGE_MARTS, *COST_MARTS)


# All rollups of the project, the one first that the others are computed from.
ROLLUPS: Final = ("int_usage__hourly", *(mart.name for mart in MARTS))


def _mart(mart: Mart) -> Suite:
    key = tuple(mart.grain)
    nulls = (
        f"num_nulls({', '.join(f'one.{column}' for column in key if column not in mart.nullable)})"
    )
    return Suite(
        mart.name,
        mart.name,
        (
            _type_check(
                mart.name,
                {**mart.grain, **mart.sums},
                "Something else than a build altered the mart: run dbt build --full-refresh.",
            ),
            _unique_check(mart.name, key, "one_row_per_grain", _REBUILD),
            *_row_checks(
                mart.name,
                key,
                (RowRule("key_columns_are_there", f"{nulls} = 0", nulls, "no null"), *mart.rules),
                _REBUILD,
            ),
            *mart.checks,
        ),
    )
