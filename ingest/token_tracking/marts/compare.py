"""Compares the marts with an older daily table, for each tenant and day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import psycopg
from psycopg import sql

from ..errors import CompareError
from ..escapes import likeness
from .reader import WHO_READS_ALL, Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date
    from decimal import Decimal

# A full join on both keys: a day that only one side has is a difference, too. Rows of the older
# table without a day belong to no period, so they are always included.
_QUERY: Final = sql.SQL("""
with counted as (
    select
        tenant_id::text as tenant_id,
        usage_date,
        sum(tokens)::numeric as tokens
    from {marts}.daily_token_usage
    where
        usage_date >= coalesce(%(since)s::date, '-infinity')
        and usage_date < coalesce(%(until)s::date, 'infinity')
    group by tenant_id, usage_date
),

given as (
    select
        {tenant}::text as tenant_id,
        case when isfinite({day}::date) then {day}::date end as usage_date,
        coalesce(sum({tokens})::numeric, 0) as tokens
    from {table}
    where
        (isfinite({day}::date) is not true)
        or (
            {day}::date >= coalesce(%(since)s::date, '-infinity')
            and {day}::date < coalesce(%(until)s::date, 'infinity')
        )
    group by 1, 2
)

select
    coalesce(given.tenant_id, counted.tenant_id),
    coalesce(given.usage_date, counted.usage_date),
    given.tokens,
    counted.tokens
from given
full outer join counted
    on given.tenant_id = counted.tenant_id and given.usage_date = counted.usage_date
order by 2, 1
""")


@dataclass(frozen=True)
class OldTable:
    """A daily table of another system: its name, perhaps with a schema, and its columns."""

    name: str
    tenant: str = "tenant_id"
    day: str = "usage_date"
    tokens: str = "tokens"

    def query(self, marts: str) -> sql.Composed:
        """Return the query that compares it with the marts of a schema."""
        return _QUERY.format(
            marts=sql.Identifier(marts),
            table=sql.Identifier(*self.name.split(".")),
            tenant=sql.Identifier(self.tenant),
            day=sql.Identifier(self.day),
            tokens=sql.Identifier(self.tokens),
        )


@dataclass(frozen=True)
class Day:
    """One tenant's day: the tokens of the older table and of the marts, None without a row.

    Tokens are compared exactly: an older table may hold fractions, which are a difference. It may
    also hold rows without a tenant or a day; NULL tokens count as 0.
    """

    tenant_id: str | None
    usage_date: date | None
    theirs: Decimal | None
    ours: Decimal | None

    @property
    def difference(self) -> Decimal | int:
        """Return the marts' tokens minus the older table's; a missing row counts as 0."""
        return (self.ours or 0) - (self.theirs or 0)


def look_alikes(days: Iterable[Day]) -> list[dict[str, tuple[Decimal | int, Decimal | int]]]:
    """Return groups of tenants whose ids look alike, with their tokens on both sides."""
    groups: dict[str, dict[str, tuple[Decimal | int, Decimal | int]]] = {}
    for day in days:
        if day.tenant_id is not None:
            group = groups.setdefault(likeness(day.tenant_id), {})
            theirs, ours = group.get(day.tenant_id, (0, 0))
            group[day.tenant_id] = (theirs + (day.theirs or 0), ours + (day.ours or 0))
    return [group for group in groups.values() if len(group) > 1]


def compared(
    connection: psycopg.Connection[tuple[object, ...]],
    table: OldTable,
    marts: str,
    since: date | None = None,
    until: date | None = None,
) -> Iterator[Day]:
    """Yield each tenant and day of either side, ordered by day; rows without a day come last.

    The marts' days are in the billing time zone; the older table's days are used as they are.

    Args:
        connection: a connection to the database that holds both.
        table: the older table.
        marts: the schema of the marts.
        since: the first day.
        until: the day after the last one.

    Raises:
        CompareError: one of the two cannot be read, or not all of its rows.

    """
    reader = Reader.of(connection, marts)
    if reader.is_restricted:
        message = (
            f"row-level security shows the role {reader.role!r} only a part of "
            f"{marts}.daily_token_usage: {WHO_READS_ALL}"
        )
        raise CompareError(message)
    try:
        rows = connection.execute(table.query(marts), {"since": since, "until": until})
    except psycopg.errors.UndefinedTable as error:
        said = error.diag.message_primary or ""
        if "daily_token_usage" in said and marts in said:
            message = f"{marts}.daily_token_usage does not exist: dbt build makes it"
            raise CompareError(message) from error
        message = f"{table.name}: {said}"
        raise CompareError(message) from error
    except psycopg.errors.UndefinedColumn as error:
        said = error.diag.message_primary
        message = f"{table.name}: {said}; --tenant, --day and --tokens name its columns"
        raise CompareError(message) from error
    except (
        psycopg.errors.DataError,
        psycopg.errors.CannotCoerce,
        psycopg.errors.UndefinedFunction,
    ) as error:
        message = f"{table.name}: {error.diag.message_primary}"
        raise CompareError(message) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise CompareError(error.diag.message_primary or "permission denied") from error
    for tenant_id, day, theirs, ours in rows:
        yield Day(
            cast("str | None", tenant_id),
            cast("date | None", day),
            cast("Decimal | None", theirs),
            cast("Decimal | None", ours),
        )
