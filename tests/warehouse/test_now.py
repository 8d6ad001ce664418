"""Totals as of now are the oracle's for the reader's own snapshot, whatever was built before."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

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
MISTAKES = {
    "what counts otherwise is left out": (
        everything_new, NOW_SQL,
        "        union all\n        select corrected.* from corrected\n", "",
    ),
    "nothing is taken back": (everything_new, NOW_SQL, "periods, sign='-'", "periods, sign='0 * '"),
    "what counts otherwise is taken back as it counts now": (
        everything_new, NOW_SQL, ", as_of='(select saved.snapshot from saved)'", ""
    ),
    "new voids are forgotten": (everything_new, NOW_SQL, "~ is_since_build('voids')", '~ "false"'),
    "new owners are forgotten": (
        everything_new, NOW_SQL, "~ is_since_build('owners')", '~ "false"'
    ),
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
        "input_1.snapshot,\n        pg_snapshot_xmin(input_1.snapshot)",
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


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A warehouse behind roles, with usage of two payers since its build."""
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
            "grant acme_reader, blue_reader to authenticator",
            "insert into token_tracking_raw.tenant_readers values"
            " ('acme_reader', 'acme'), ('blue_reader', 'blue'), ('web_backend', null)",
            "grant usage on schema token_tracking_raw to nobody",
        )
        warehouse = Warehouse(database)
        warehouse.insert([Event(f"old-{payer}", NOON, payer) for payer in ("acme", "blue")])
        project = DbtProject({**database.env, "PGUSER": "dbt"}, tmp_path_factory.mktemp("now"))
        project.must("build")
        execute(database, "grant usage on schema token_tracking to nobody")
        warehouse.insert(
            [
                *(Event(f"new-{payer}", NOON, payer) for payer in ("acme", "blue", "third")),
                Event("bot", NOON, "third", agent="bot"),
            ],
            owners=[("bot", NOON - DAY, "acme")],
        )
        yield database


@pytest.mark.parametrize("is_usable", [True, False], ids=["since the build", "from raw events"])
@pytest.mark.parametrize(
    ("user", "before", "payers"),
    [
        ("ana", "select 1", {"acme": 3, "blue": 2, "third": 1}),
        ("dbt", "select 1", {"acme": 3, "blue": 2, "third": 1}),
        ("acme_reader", "select 1", {"acme": 3}),
        ("authenticator", "set role blue_reader", {"blue": 2}),
        ("postgres", "set role acme_reader", {"acme": 3}),
        ("web_backend", "set token_tracking.tenant_id = 'blue'", {"blue": 2}),
        ("web_backend", "select 1", {}),
        ("acme_reader", "set token_tracking.tenant_id = 'blue'", {"acme": 3}),
    ],
)
def test_a_reader_sees_the_payers_of_the_mart(
    managed: Database, user: str, before: str, payers: dict[str, int], is_usable: bool
) -> None:
    zone = "UTC" if is_usable else "of another build"
    execute(managed, f"update token_tracking.build_state set billing_timezone = '{zone}'")
    with closing(login(managed, user)) as connection:
        connection.execute(before)  # type: ignore[arg-type]
        for mart in NOW:
            rows = connection.execute(
                f"select tenant_id, sum(event_count)::int from token_tracking.{mart}_now group by 1"  # type: ignore[arg-type]
            )
            assert dict(rows.fetchall()) == payers
            changed = connection.execute(
                f"select distinct tenant_id from token_tracking.{mart}_since_build()"  # type: ignore[arg-type]
            )
            assert {payer for (payer,) in changed} == set(payers)


@pytest.mark.parametrize(
    ("user", "before"), [("nobody", "select 1"), ("authenticator", "set role nobody")]
)
def test_who_may_not_read_a_mart_learns_nothing(managed: Database, user: str, before: str) -> None:
    execute(managed, "grant nobody to authenticator")
    with closing(login(managed, user)) as connection:
        connection.execute(before)  # type: ignore[arg-type]
        for mart in NOW:
            for source in (f"{mart}_now", f"{mart}_since_build()"):
                with pytest.raises(DENIED):
                    connection.execute(f"select * from token_tracking.{source}")  # type: ignore[arg-type]
