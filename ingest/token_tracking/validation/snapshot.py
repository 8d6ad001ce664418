"""The snapshot that all queries of a validation see, and the check that it holds something."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import psycopg
from psycopg import sql

from ..errors import NothingToCheckError, QualityError
from ..target import Target
from .suites import MARTS, ROLLUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from datetime import datetime

_READ: Final = (
    *(mart.name for mart in MARTS),
    *("build_status", "unmapped_labels", "tenant_token_usage", "label_aliases"),
)
_RAW_TABLES: Final = (
    *("usage_events", "usage_voids", "agent_owners"),
    *("model_prices", "model_aliases", "price_list_rules", "tenant_price_lists"),
)
_NO_EVENTS: Final = "nothing to check: no events are recorded; record some, then run dbt build"
# During a build, the models' totals are of two different builds. After this many seconds, that is
# taken for the result of a build with a partial selection.
PATIENCE: Final = 30.0
_PAUSE: Final = 0.2
_LOCK_PATIENCE: Final = "set lock_timeout = '60s'"

_THERE: Final = """
    select
        to_regclass('token_tracking_raw.usage_events') is not null,
        (
            select bool_and(
                to_regclass(format('%%I.%%I', %(schema)s::text, marts.name)) is not null
            )
            from unnest(%(marts)s::text[]) as marts (name)
        )
"""
_BUILDS: Final = """
    select
        builds.model,
        builds.run_number,
        builds.aliases_are_current,
        builds.as_of,
        builds.price_snapshot::text
    from {} as builds
    where builds.model = any(%s)
"""
# A mart of which policies hide rows, and the roles that see all of them.
_HIDDEN: Final = """
    select
        marts.relname,
        (
            select string_agg(roles.rolname, ' or ' order by roles.rolname)
            from pg_roles as roles
            where roles.oid = marts.relowner or roles.oid = any(everything.roles)
        )
    from pg_class as marts
    cross join lateral (
        select coalesce(array_agg(role), '{}') as roles
        from pg_policy as policies
        cross join unnest(policies.polroles) as role
        where
            policies.polrelid = marts.oid
            and policies.polpermissive
            and policies.polcmd in ('r', '*')
            and pg_get_expr(policies.polqual, policies.polrelid) = 'true'
    ) as everything
    where
        marts.relnamespace = to_regnamespace(quote_ident(%s))
        and marts.relname = any(%s)
        and row_security_active(marts.oid)
        and not exists (
            select from unnest(everything.roles) as role
            where case role when 0 then true else pg_has_role(role, 'usage') end
        )
    order by marts.relname
    limit 1
"""
_EVENTS: Final = """
    select
        exists (select from token_tracking_raw.usage_events),
        exists (
            select from token_tracking_raw.usage_events as events
            where pg_visible_in_snapshot(events.ingest_xid::text::xid8, builds.snapshot)
        ),
        exists (select from {} as hourly)
    from {} as builds
    where builds.model = 'int_usage__hourly'
"""


@dataclass(frozen=True)
class Snapshot:
    """An exported snapshot; `id` is valid for `set transaction snapshot` while it is held."""

    id: str
    schema: str
    as_of: datetime


@contextmanager
def hold_snapshot(
    schema: str, *, patience: float = PATIENCE, on_wait: Callable[[], object] = lambda: None
) -> Generator[Snapshot]:
    """Export a snapshot of the database of libpq's variables, after checking that it has totals.

    Args:
        schema: the schema of the warehouse.
        patience: seconds to wait for a running build to end.
        on_wait: called once, before a wait.

    Raises:
        NothingToCheckError: there are no events, or no totals of them.
        QualityError: the database cannot be read, or not all rows of it.

    """
    try:
        with psycopg.connect("", application_name="token-tracking-validate") as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            # This session is idle while the validation runs.
            connection.execute("set idle_in_transaction_session_timeout = 0")
            connection.execute(_LOCK_PATIENCE)
            deadline = time.monotonic() + patience
            has_waited = False
            while True:
                _require_relations(connection, schema)
                connection.rollback()
                # A table that is dropped and recreated after a snapshot looks empty to it. LOCK
                # takes no snapshot, so the snapshot taken after it sees tables that stay.
                connection.execute(_lock(schema))
                builds = _builds(connection, schema)
                if _is_one_build(builds) or time.monotonic() >= deadline:
                    break
                connection.rollback()
                if not has_waited:
                    on_wait()
                    has_waited = True
                time.sleep(_PAUSE)
            _refuse_hidden_rows(connection, schema)
            _refuse_nothing(connection, schema)
            [(exported,)] = connection.execute("select pg_export_snapshot()").fetchall()
            as_of = builds["int_usage__hourly"].as_of
            yield Snapshot(cast("str", exported), schema, as_of)
    except psycopg.errors.InsufficientPrivilege as error:
        message = (
            f"{Target.of('')} refused: {error.diag.message_primary}; validation needs usage on the "
            f"schemas token_tracking_raw and {schema} and select on their tables"
        )
        raise QualityError(message) from error
    except psycopg.errors.LockNotAvailable as error:
        message = (
            f"{Target.of('')}: a table that validation reads is locked for a change since over "
            "60 s (pg_locks says by whom); validate again when that is over"
        )
        raise QualityError(message) from error
    except psycopg.Error as error:
        raise QualityError(Target.of("").explain(error)) from error


def _require_relations(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    [(has_raw, has_marts)] = connection.execute(
        _THERE, {"schema": schema, "marts": list(_READ)}
    ).fetchall()
    if not has_raw:
        message = (
            f"nothing to check: {Target.of('')} has no token_tracking_raw schema; run "
            "token-tracking schema apply, record events, then run dbt build"
        )
        raise NothingToCheckError(message)
    if not has_marts:
        _refuse_unbuilt(connection, schema, ROLLUPS)


def _refuse_unbuilt(
    connection: psycopg.Connection[tuple[object, ...]], schema: str, missing: Sequence[str]
) -> None:
    [(recorded,)] = connection.execute(
        "select exists (select from token_tracking_raw.usage_events)"
    ).fetchall()
    message = (
        f"nothing to check: the totals in schema {schema} were never built "
        f"({', '.join(missing)}); run dbt build"
        if recorded
        else _NO_EVENTS
    )
    raise NothingToCheckError(message)


def _lock(schema: str) -> sql.Composed:
    relations = [
        *(sql.Identifier("token_tracking_raw", table) for table in _RAW_TABLES),
        *(sql.Identifier(schema, relation) for relation in _READ),
    ]
    return sql.SQL("lock table {} in access share mode").format(sql.SQL(", ").join(relations))


class _Build(NamedTuple):
    """The state that a rollup was built from."""

    run_number: int
    aliases_are_current: bool | None
    as_of: datetime
    price_snapshot: str | None


def _builds(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> dict[str, _Build]:
    """Return the newest build of each rollup."""
    query = sql.SQL(_BUILDS).format(sql.Identifier(schema, "build_status"))
    found = {
        cast("str", model): _Build(
            *cast("tuple[int, bool | None, datetime, str | None]", tuple(build))
        )
        for model, *build in connection.execute(query, (list(ROLLUPS),))
    }
    if missing := [model for model in ROLLUPS if model not in found]:
        _refuse_unbuilt(connection, schema, missing)
    return found


def _is_one_build(builds: dict[str, _Build]) -> bool:
    prices = {build.price_snapshot for build in builds.values() if build.price_snapshot}
    # A running build fills the aliases first.
    return (
        len({build.run_number for build in builds.values()}) == 1
        and len(prices) == 1
        and all(build.aliases_are_current for build in builds.values())
    )


def _refuse_hidden_rows(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    for mart, roles in connection.execute(_HIDDEN, (schema, [mart.name for mart in MARTS])):
        message = (
            f"{Target.of('')} is not shown every row of {schema}.{mart}: its row-level security "
            f"shows them to members of {roles}; validate as one of these"
        )
        raise QualityError(message)


def _refuse_nothing(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    query = sql.SQL(_EVENTS).format(
        sql.Identifier(schema, "hourly_token_usage"), sql.Identifier(schema, "build_status")
    )
    [(recorded, counted, has_totals)] = connection.execute(query).fetchall()
    if counted or has_totals:
        return  # totals without events are wrong, and the suites report that
    message = (
        "nothing to check: all events are newer than the last dbt build; run dbt build"
        if recorded
        else _NO_EVENTS
    )
    raise NothingToCheckError(message)
