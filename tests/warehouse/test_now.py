"""Totals as of now are the oracle's for the reader's own snapshot, whatever was built before."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE, Database, started_server
from tests.support.logins import DENIED, execute, login, managed_database
from tests.support.oracle import Settings
from tests.support.project import DbtProject, Edit
from tests.support.warehouse import NOW, Event, Warehouse, WrongTotalsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    History = Callable[[DbtProject, Warehouse], None]

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def warehouse(database: Database) -> Warehouse:
    return Warehouse(database, Settings(aliases={}))


@pytest.fixture
def project(database: Database, tmp_path: Path) -> DbtProject:
    return DbtProject({**database.env, "PGTZ": "Asia/Kolkata"}, tmp_path)


def everything_new(project: DbtProject, warehouse: Warehouse) -> None:
    """Whatever changes a total shows at once, whichever marts were built since."""
    warehouse.insert(
        [
            Event("1", NOON, agent="bot"),
            Event("2", NOON + HOUR),
            Event("3", NOON + DAY, "blue", agent="bot"),
        ],
        voids=[("acme", "void-first")],
        owners=[("bot", NOON - DAY, "seller")],
    )
    with closing(warehouse.connect(autocommit=False)) as late:
        warehouse.insert([Event("late", NOON)], connection=late)
        warehouse.insert([Event("early", NOON)])
        project.must("run")
        warehouse.check_now()
        late.commit()
    warehouse.check_now()
    warehouse.insert([Event("4", NOON), Event("5", NOON + 40 * DAY, "new", model=None)])
    warehouse.check_now()
    voids = [("acme", "2"), ("acme", "6"), ("acme", "unknown")]
    warehouse.insert([Event("6", NOON), Event("void-first", NOON)], voids)
    warehouse.check_now()
    warehouse.insert([Event("7", NOON + DAY, agent="bot")], owners=[("bot", NOON + HOUR, "buyer")])
    warehouse.check_now()
    warehouse.insert(owners=[("bot", NOON - DAY, None)], voids=[("blue", "3")])
    warehouse.check_now()
    project.must("run", "--select", "int_usage__hourly")
    project.must("run", "--select", "monthly_token_usage")
    warehouse.insert([Event("8", NOON, "blue", agent="bot")], owners=[("bot", NOON, "late")])
    warehouse.check_now()
    project.must("run", "--select", "daily_token_usage")
    warehouse.check_now()
    project.must("run")
    warehouse.check_now()


def nothing_to_go_on_from(project: DbtProject, warehouse: Warehouse) -> None:
    """What makes the next build count everything makes the view do so, before that build."""
    warehouse.insert([Event("1", NOON), Event("2", NOON + HOUR, operation="dance")])
    project.must("run")
    warehouse.insert([Event("3", NOON, "blue")])
    aliases = {("operation", "dance"): "chat"}
    now = replace(warehouse, settings=replace(warehouse.settings, aliases=aliases))
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "insert into token_tracking.label_aliases values ('operation', 'dance', 'chat')"
        )
        now.check_now()
        project.must("run")
        warehouse.insert([Event("by alias", NOON, operation="dance")])
        now.check_now()
        connection.execute(
            "create temporary table kept as select * from token_tracking_raw.usage_events;"
            " truncate token_tracking_raw.usage_events;"
            " insert into token_tracking_raw.usage_events"
            " select * from kept where idempotency_key = '1'"
        )
        now.check_now()
        project.must("run")
        connection.execute("truncate token_tracking.daily_token_usage")
        now.check_now()
        project.must("run")
        connection.execute(
            "update token_tracking.build_state set snapshot = '1000000000:1000000000:'"
            " where snapshot is not null"
        )
        warehouse.insert([Event("4", NOON)])
        now.check_now()


def other_rules(project: DbtProject, warehouse: Warehouse) -> None:
    """A mart that was built by other rules than the view is not taken for its own."""
    warehouse.insert([Event("1", NOON, "blue"), Event("2", NOON.replace(hour=20))])
    project.must("run")
    warehouse.insert([Event("3", NOON.replace(hour=21), operation="dance")])
    marts = ("int_usage__hourly", "daily_token_usage", "hourly_token_usage", "monthly_token_usage")
    project.must("run", "--select", *marts, billing_timezone="Asia/Kolkata")
    warehouse.insert([Event("4", NOON.replace(hour=22), "blue")])
    warehouse.check_now()
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "delete from token_tracking_raw.usage_events where idempotency_key = '1'"
        )
        project.must("run", "--select", "int_usage__hourly", "--full-refresh")
        warehouse.check_now()
        warehouse.insert(voids=[("acme", "2")])
        project.must("run")
        connection.execute(
            "create or replace view token_tracking.stg_usage__voids as"
            " select tenant_id as requester_tenant_id, idempotency_key, ingest_xid"
            " from token_tracking_raw.usage_voids where false"
        )
        totals = [
            connection.execute(f"select sum(tokens) from token_tracking.{relation}").fetchall()  # type: ignore[arg-type]
            for relation in ("usage_events", *(f"{mart}_now" for mart in NOW))
        ]
        if totals != totals[:1] * 4:
            raise WrongTotalsError(totals)


@pytest.mark.parametrize("history", [everything_new, nothing_to_go_on_from, other_rules])
def test_totals_as_of_now_are_exact(
    project: DbtProject, warehouse: Warehouse, history: History
) -> None:
    history(project, warehouse)


NOW_SQL = "macros/as_of_now/totals_as_of_now.sql"
EVENTS = "macros/attributed_events.sql"
ORIGIN = "macros/protocol/input_fingerprint.sql"


def none_new(table: str) -> tuple[str, str, str]:
    """Return the edit of the view that takes no row of a raw table for new."""
    view = f"ref('stg_usage__{table}')"
    nothing = f"'(select * from ' ~ {view} ~ ' where false)'"
    return NOW_SQL, f"rows_since_build({view})", nothing


MISTAKES = {
    "what counts otherwise is left out": (
        everything_new, NOW_SQL,
        "        union all\n        select corrected.* from corrected\n", "",
    ),
    "nothing is taken back": (everything_new, NOW_SQL, "grain, sign='-'", "grain, sign='0 * '"),
    "what counts otherwise is taken back as it counts now": (
        everything_new, NOW_SQL, ", as_of='(select saved.snapshot from saved)'", ""
    ),
    "new voids are forgotten": (everything_new, *none_new("voids")),
    "new owners are forgotten": (everything_new, *none_new("agent_owners")),
    "new events count as corrected ones, too": (
        everything_new, NOW_SQL, "where not ({{ is_since_build('of_key') }})", "where true"
    ),
    "only the snapshot's xmin is used": (
        everything_new, NOW_SQL, "and not pg_visible_in_snapshot({{ rows }}.",
        "and true or false and pg_visible_in_snapshot({{ rows }}.",
    ),
    "the base's snapshot is taken for the mart's": (
        everything_new, NOW_SQL,
        "mart.snapshot,\n        pg_snapshot_xmin(mart.snapshot)",
        "{{ 'input_1' if inputs else 'mart' }}.snapshot,\n"
        "        pg_snapshot_xmin({{ 'input_1' if inputs else 'mart' }}.snapshot)",
    ),
    "a payer that has nothing left keeps a row": (
        everything_new, NOW_SQL, "having sum(counted.event_count) <> 0", ""
    ),
    "labels of new events are not looked up": (
        nothing_to_go_on_from, EVENTS,
        "and {{ kind }}_aliases.alias = events.{{ kind }}_label", "and false",
    ),
    "the origin of the totals is not compared": (
        nothing_to_go_on_from, NOW_SQL, "mart.origin = {{ origin_of_totals() }}", "true"
    ),
    "a truncated mart is believed": (
        nothing_to_go_on_from, NOW_SQL,
        "mart.relation_file = pg_relation_filenode(mart.relation_oid)", "true",
    ),
    "a snapshot of the future is believed": (
        nothing_to_go_on_from, NOW_SQL,
        "pg_snapshot_xmax(mart.snapshot) <= pg_snapshot_xmax(pg_current_snapshot())", "true",
    ),
    "a mart of a base that was rebuilt since is believed": (
        other_rules, NOW_SQL,
        "like '%, basis ' || input_{{ loop.index }}.basis", "like '%, basis %'",
    ),
    "the rules are not compared": (
        other_rules, ORIGIN, "'rules {{ rules_digest() }}'", "'rules'"
    ),
    "the views of the raw tables are not compared": (
        other_rules, ORIGIN, "select md5(rule.ev_action::text)", "select 'a view'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake: str, prebuilt: Database, tmp_path: Path) -> None:
    history, *edit = MISTAKES[mistake]
    project = DbtProject({**prebuilt.env, "PGTZ": "Asia/Kolkata"}, tmp_path, (Edit(*edit),))
    with pytest.raises(WrongTotalsError):
        history(project, Warehouse(prebuilt, Settings(aliases={})))


LOGINS = {
    "dbt": "token_tracking_transformer",
    "ana": "token_tracking_analyst",
    "acme_reader": "token_tracking_tenant_reader",
    "blue_reader": "token_tracking_tenant_reader",
    "web_backend": "token_tracking_tenant_reader",
    "nobody": None,
    "authenticator": None,
}
# A reader's own: what it tells in a query, and in an index that somebody else maintains.
TOLD = """
create schema of_reader authorization acme_reader;
grant usage on schema of_reader to public;
grant usage on schema token_tracking to nobody;
set role acme_reader;
create function of_reader.tells(anyelement) returns boolean language plpgsql immutable
cost 0.0000001 as 'begin raise notice ''told %'', $1; return true; end';
create function of_reader.reads(integer) returns integer language plpgsql immutable as $$
begin
    raise notice 'told %', (
        select string_agg(tenant_id, ' ') from token_tracking.daily_token_usage_now
    );
    return $1;
end $$;
create table of_reader.bait (number integer);
insert into of_reader.bait values (1), (2), (3);
create index bait_reads on of_reader.bait ((of_reader.reads(number)));
reset role;
"""


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A warehouse behind roles, with new events, moved ones and new owners since its build."""
    with (
        contextmanager(started_server)(None, NOT_DURABLE) as server,
        managed_database(server, "now", *LOGINS) as database,
    ):
        execute(
            database,
            *(
                f"create role {name} login" + (f" in role {group}" if group else "")
                for name, group in LOGINS.items()
            ),
            "grant acme_reader, blue_reader, nobody to authenticator",
            "insert into token_tracking_raw.tenant_readers values"
            " ('acme_reader', 'acme'), ('blue_reader', 'blue'), ('web_backend', null)",
        )
        warehouse = Warehouse(database)
        old = [Event(f"old-{payer}", NOON, payer) for payer in ("acme", "blue")]
        moved = [Event(f"moved-{agent}", NOON, "fourth", agent=agent) for agent in ("come", "gone")]
        warehouse.insert([*old, *moved], owners=[("gone", NOON - DAY, "acme")])
        project = DbtProject({**database.env, "PGUSER": "dbt"}, tmp_path_factory.mktemp("now"))
        project.must("build")
        execute(database, TOLD)
        warehouse.insert(
            [
                *(Event(f"new-{payer}", NOON, payer) for payer in ("acme", "blue", "third")),
                Event("bot", NOON, "third", agent="bot"),
            ],
            owners=[
                ("bot", NOON - DAY, "acme"),
                ("come", NOON - DAY, "acme"),
                ("gone", NOON - DAY, "blue"),
            ],
        )
        warehouse.check_now()
        yield database
        execute(database, "drop owned by acme_reader cascade", "drop owned by nobody, ana")


OF_ALL = {"acme": 4, "blue": 3, "third": 1}


@pytest.fixture(params=[True, False], ids=["since the build", "from raw events"])
def is_usable(request: pytest.FixtureRequest, managed: Database) -> bool:
    """Whether the views can continue from the build, or have to count everything."""
    origin = "replace(origin, 'not ', '')" if request.param else "'not ' || origin"
    execute(managed, f"update token_tracking.build_state set origin = {origin}")
    return request.param


def seen(
    connection: psycopg.Connection[tuple], relation: str, condition: str = ""
) -> dict[str, int]:
    """Return the number of events of each payer whom a reader sees."""
    query = f"select tenant_id, sum(event_count)::int from {relation} {condition} group by 1"
    return dict(connection.execute(query).fetchall())  # type: ignore[arg-type]


@pytest.mark.usefixtures("is_usable")
@pytest.mark.parametrize(
    ("user", "before", "payers"),
    [
        ("ana", "select 1", OF_ALL),
        ("dbt", "select 1", OF_ALL),
        ("postgres", "select 1", OF_ALL),
        ("acme_reader", "select 1", {"acme": 4}),
        ("authenticator", "set role blue_reader", {"blue": 3}),
        ("postgres", "set role acme_reader", {"acme": 4}),
        ("web_backend", "set token_tracking.tenant_id = 'blue'", {"blue": 3}),
        ("web_backend", "select 1", {}),
        ("acme_reader", "set token_tracking.tenant_id = 'blue'", {"acme": 4}),
    ],
)
def test_a_reader_sees_the_payers_of_the_mart(
    managed: Database, user: str, before: str, payers: dict[str, int]
) -> None:
    with closing(login(managed, user)) as connection:
        connection.execute(before)  # type: ignore[arg-type]
        for mart in NOW:
            assert seen(connection, f"token_tracking.{mart}_now") == payers


@pytest.mark.parametrize(
    ("user", "before"), [("nobody", "select 1"), ("authenticator", "set role nobody")]
)
def test_who_may_not_read_a_mart_learns_nothing(managed: Database, user: str, before: str) -> None:
    with closing(login(managed, user)) as connection:
        connection.execute(before)  # type: ignore[arg-type]
        for mart in NOW:
            with pytest.raises(DENIED):
                connection.execute(f"select * from token_tracking.{mart}_now")  # type: ignore[arg-type]


def told_to_a_reader(database: Database) -> set[str]:
    """Return the payers that a reader learns of by functions and indexes, and views of others."""
    told: list[str] = []
    with closing(login(database, "ana")) as analyst:
        for name, reader in (("views_of_ana", "acme_reader"), ("views_for_nobody", "nobody")):
            execute(database, f"create schema {name} authorization ana")
            analyst.execute(
                f"create view {name}.on_top as select * from token_tracking.daily_token_usage_now;"  # type: ignore[arg-type]
                f" grant usage on schema {name} to {reader};"
                f" grant select on {name}.on_top to {reader}"
            )
    try:
        with closing(login(database, "acme_reader")) as connection:
            connection.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
            for mart in NOW:
                relation = f"token_tracking.{mart}_now"
                for what in ("tenant_id", "tokens", "usage", "usage.tenant_id || ''"):
                    connection.execute(
                        f"select * from {relation} as usage where of_reader.tells({what})"  # type: ignore[arg-type]
                    )
                told += seen(connection, relation, "where tenant_id <> 'acme'")
                told += seen(connection, relation, "where tenant_id = any('{blue,third}')")
            told += seen(connection, "views_of_ana.on_top")
            told += seen(connection, "views_of_ana.on_top", "where of_reader.tells(tenant_id)")
        with closing(login(database, "nobody")) as connection:
            told += seen(connection, "views_for_nobody.on_top")
        with closing(login(database, "postgres")) as superuser:
            superuser.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
            for command in ("analyze", "reindex table", "vacuum full", "vacuum analyze"):
                before = len(told)
                superuser.execute(f"{command} of_reader.bait")  # type: ignore[arg-type]
                assert len(told) > before or command == "vacuum analyze"
    finally:
        execute(database, "drop schema views_of_ana, views_for_nobody cascade")
    assert "told acme" in told
    return {payer for payer in OF_ALL for line in told if payer in line}


@pytest.mark.usefixtures("is_usable")
def test_a_reader_is_told_of_no_other_payer(managed: Database) -> None:
    assert told_to_a_reader(managed) == {"acme"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CURRENT_USER", "SESSION_USER"),
        ("(reader.sees_all OR ", "(true OR "),
        ("policy.polname = 'all_rows'::name", "true"),
    ],
)
def test_each_protection_is_needed(managed: Database, old: str, new: str) -> None:
    name = "token_tracking.daily_token_usage_now"
    [(query,)] = managed.rows(f"select pg_get_viewdef('{name}'::regclass)")
    before = f"create or replace view {name} with (security_barrier) as {query}"
    assert old in before
    try:
        execute(managed, before.replace(old, new))
        assert told_to_a_reader(managed) > {"acme"}
    finally:
        execute(managed, before)
