"""Directed histories: each is right for the project and wrong for the mistakes that name it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tests.support.project import Edit
from tests.support.warehouse import ROLLUPS, Event, Warehouse, WrongTotalsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.project import DbtProject

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)
BASE = "token_tracking.int_usage__hourly"


def late_commit(project: DbtProject, warehouse: Warehouse) -> None:
    """A transaction starts before a build and commits after the next one began to count others."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    with closing(warehouse.connect(autocommit=False)) as late:
        warehouse.insert([Event("late", NOON, tokens=7)], connection=late)
        warehouse.insert([Event("2", NOON + DAY)])
        project.must("run")
        warehouse.check()
        late.commit()
    project.must("run")
    warehouse.check()


def late_void(project: DbtProject, warehouse: Warehouse) -> None:
    """A void and an owner come late to events that are counted, and commit later still."""
    warehouse.insert([Event("1", NOON), Event("2", NOON + DAY, agent="bot")])
    project.must("run")
    with closing(warehouse.connect(autocommit=False)) as late:
        owners = [("bot", NOON, "owner")]
        warehouse.insert(voids=[("acme", "1")], owners=owners, connection=late)
        warehouse.insert([Event("3", NOON + 2 * DAY)])
        project.must("run")
        warehouse.check()
        late.commit()
    project.must("run")
    warehouse.check()


def nothing_new(project: DbtProject, warehouse: Warehouse) -> None:
    """An open transaction elsewhere makes no build repeat what it has counted."""
    warehouse.insert([Event("1", NOON, agent="bot")])
    project.must("run")
    with closing(warehouse.connect(autocommit=False)) as other:
        warehouse.insert([Event("open", NOON)], connection=other)
        warehouse.insert([Event("2", NOON, agent="bot")])
        project.must("run")
        before = written(warehouse)
        assert len(before) >= len(ROLLUPS) + 1
        again = project.must("run")
        agree(written(warehouse), before)
        agree({again.messages[one] for one in ("int_usage__hourly", *ROLLUPS)}, {"UNCHANGED"})
    warehouse.check()


def commit_during_build(project: DbtProject, warehouse: Warehouse) -> None:
    """Another hour's event commits after the build looked for changes, before it wrote."""
    warehouse.insert([Event("1", NOON), Event("2", NOON + HOUR)])
    project.must("run")
    warehouse.insert([Event("3", NOON)])
    with closing(warehouse.connect(autocommit=False)) as gate:
        gate.execute(f"lock table {BASE} in share mode")
        build = project.start("run")
        until_waiting_for(warehouse, BASE)
        warehouse.insert([Event("4", NOON + HOUR), Event("5", NOON)])
        gate.rollback()
    result = build.wait()
    assert result.green, result.said
    warehouse.check()
    project.must("run")
    warehouse.check()


def two_builds_wait(project: DbtProject, warehouse: Warehouse) -> None:
    """Two builds wait for the same lock; the second one goes on from what the first one did."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON + DAY)])
    with closing(warehouse.connect(autocommit=False)) as gate:
        gate.execute("lock table token_tracking.build_state in share row exclusive mode")
        builds = [project.start("run", "--select", "int_usage__hourly") for _ in range(2)]
        until_waiting_for(warehouse, "token_tracking.build_state", builds=2)
        gate.rollback()
    for result in [build.wait() for build in builds]:
        assert result.green, result.said
    project.must("run")
    warehouse.check()


def payer_loses_everything(project: DbtProject, warehouse: Warehouse) -> None:
    """The only event of a payer's day turns out to be another payer's."""
    warehouse.insert([Event("1", NOON, agent="bot"), Event("2", NOON, "other")])
    project.must("run")
    warehouse.insert(owners=[("bot", NOON - DAY, "owner")])
    project.must("run")
    warehouse.check()


def last_event_is_voided(project: DbtProject, warehouse: Warehouse) -> None:
    """A day loses its only event."""
    warehouse.insert([Event("1", NOON), Event("2", NOON + DAY)])
    project.must("run")
    warehouse.insert(voids=[("acme", "2")])
    project.must("run")
    assert len(warehouse.check()["daily_token_usage"]) == 1


def void_first(project: DbtProject, warehouse: Warehouse) -> None:
    """A void stands before its event; another tenant's event of the same key counts."""
    warehouse.insert([Event("2", NOON)], voids=[("acme", "1")])
    project.must("run")
    warehouse.insert([Event("1", NOON), Event("1", NOON, "other")])
    project.must("run")
    warehouse.check()


def added_and_recounted(project: DbtProject, warehouse: Warehouse) -> None:
    """One build adds events to an hour, and counts another again that also has new events."""
    owners = [("bot", NOON - DAY, "owner")]
    first = [Event("1", NOON), Event("2", NOON + HOUR, agent="bot"), Event("3", NOON + HOUR)]
    warehouse.insert(first, owners=owners)
    project.must("run")
    for number in range(2):
        new = [
            Event(f"{number}-{hour}-{payer}-{agent}", NOON + hour * HOUR, payer, agent=agent)
            for hour in (0, 1, 2)
            for payer in ("acme", "other")
            for agent in (None, "bot")
        ]
        seen, unseen = ("acme", str(2 + number)), ("acme", f"{number}-2-acme-bot")
        warehouse.insert(new, voids=[seen, unseen])
        project.must("run")
        warehouse.check()


def owner_of_new_events(project: DbtProject, warehouse: Warehouse) -> None:
    """An owner comes together with events of its agent; one of them was there before."""
    before = [Event("1", NOON, agent="bot"), Event("2", NOON + DAY)]
    warehouse.insert([*before, Event("5", NOON + 2 * DAY, agent="bot")])
    project.must("run")
    warehouse.insert(
        [Event("3", NOON, agent="bot"), Event("4", NOON + DAY, agent="bot")],
        owners=[("bot", NOON - DAY, "owner")],
    )
    project.must("run")
    warehouse.check()


def updated_in_place(project: DbtProject, warehouse: Warehouse) -> None:
    """A counted event loses its personal data by hand: the row moves and counts as before."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute("update token_tracking_raw.usage_events set metadata = '{}'")
    warehouse.insert([Event("2", NOON)])
    project.must("run")
    warehouse.check()


def state_is_not_saved(project: DbtProject, warehouse: Warehouse) -> None:
    """A build ends when it has counted and has not saved its state; the next one counts once."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON), Event("3", NOON + HOUR)])
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "create function public.stop() returns trigger language plpgsql"
            " as 'begin raise exception $$the build ends here$$; end';"
            " create trigger stop before insert on token_tracking.build_state"
            " for each row execute function public.stop()"
        )
        assert "the build ends here" in project.run("run").said
        connection.execute("drop trigger stop on token_tracking.build_state")
    project.must("run")
    warehouse.check()


def many_groups(project: DbtProject, warehouse: Warehouse) -> None:
    """Several hours of a day change for one payer, one hour for another, and again."""
    warehouse.insert([Event(f"0-{payer}", NOON, payer) for payer in ("acme", "other", "third")])
    project.must("run")
    for number in (1, 2):
        warehouse.insert(
            [
                Event(f"{number}-{hour}-{payer}", NOON + hour * HOUR, payer, agent=agent)
                for payer, hours in (("acme", (0, 1, 5)), ("other", (2,)))
                for hour, agent in zip(hours, ("bot", None, "bot"), strict=False)
            ]
        )
        project.must("run")
        warehouse.check()


def sold_agent(project: DbtProject, warehouse: Warehouse) -> None:
    """An agent is sold; events before, at and after the instant have the owner of their time."""
    warehouse.insert(
        [
            Event(str(offset), NOON + offset * INSTANT, agent="bot", tokens=10 ** (offset + 1))
            for offset in (-1, 0, 1)
        ],
        owners=[("bot", NOON - DAY, "seller"), ("bot", NOON, "buyer")],
    )
    project.must("run")
    warehouse.check()


def corrected_owner(project: DbtProject, warehouse: Warehouse) -> None:
    """A higher revision of the same instant corrects the earlier one, up to the next instant."""
    warehouse.insert(
        [
            Event("0", NOON - DAY, agent="bot"),
            Event("1", NOON, agent="bot"),
            Event("2", NOON + DAY, agent="bot"),
        ],
        owners=[("bot", NOON - DAY, "wrong"), ("bot", NOON + HOUR, "next")],
    )
    project.must("run")
    warehouse.insert(owners=[("bot", NOON - DAY, "right")])
    project.must("run")
    warehouse.check()


def old_event(project: DbtProject, warehouse: Warehouse) -> None:
    """An event arrives years late, in a month with nothing else."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON - 1000 * DAY), Event("3", NOON + HOUR)])
    project.must("run")
    warehouse.check()


def half_hour_zone(project: DbtProject, warehouse: Warehouse) -> None:
    """A midnight in the middle of an hour of UTC, with the base's hour rebuilt for both days."""
    warehouse = replace(
        warehouse, settings=replace(warehouse.settings, billing_timezone="Asia/Kathmandu")
    )
    midnight = datetime(2026, 3, 10, 18, 15, tzinfo=UTC)
    warehouse.insert([Event("1", midnight - INSTANT), Event("2", midnight, tokens=3)])
    project.must("run", billing_timezone="Asia/Kathmandu")
    warehouse.check()
    warehouse.insert([Event("3", midnight, tokens=5)])
    project.must("run", billing_timezone="Asia/Kathmandu")
    assert len(warehouse.check()["daily_token_usage"]) == 2


def midnight_comes_twice(project: DbtProject, warehouse: Warehouse) -> None:
    """St. John's turned its clocks at 00:01: the day of one minute lies inside an hour of UTC."""
    zone = "America/St_Johns"
    warehouse = replace(warehouse, settings=replace(warehouse.settings, billing_timezone=zone))
    minute = datetime(2010, 11, 7, 2, 30, 30, tzinfo=UTC)
    warehouse.insert([Event("1", minute - HOUR), Event("2", minute + HOUR)])
    project.must("run", billing_timezone=zone)
    warehouse.insert([Event("3", minute)])
    project.must("run", billing_timezone=zone)
    warehouse.check()
    warehouse.insert(voids=[("acme", "3")])
    project.must("run", billing_timezone=zone)
    warehouse.check()


def changed_zone(project: DbtProject, warehouse: Warehouse) -> None:
    """Another billing time zone, with only a part of the project selected."""
    warehouse.insert([Event("1", NOON.replace(hour=20))])
    project.must("run")
    warehouse.check()
    zone = "Asia/Kolkata"
    project.must("run", "--select", "int_usage__hourly", billing_timezone=zone)
    zones = dict(warehouse.rows("select model, billing_timezone from token_tracking.build_status"))
    told = zones["int_usage__hourly"], zones["daily_token_usage"]
    assert told == (zone, "UTC"), f"build_status tells {told}"
    project.must("run", "--select", "+daily_token_usage", billing_timezone=zone)
    moved = replace(warehouse, settings=replace(warehouse.settings, billing_timezone=zone))
    agree(moved.marts()["daily_token_usage"], moved.expected()["daily_token_usage"])
    project.must("run", billing_timezone=zone)
    moved.check()


def new_alias(project: DbtProject, warehouse: Warehouse) -> None:
    """A new alias repairs the past, in every mart."""
    warehouse.insert([Event("1", NOON, operation="dance"), Event("2", NOON + DAY)])
    project.must("run")
    assert warehouse.check()["unmapped_labels"] == [("operation", "dance", 100, 1)]
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "insert into token_tracking.label_aliases values ('operation', 'dance', 'chat')"
        )
    aliases = {**warehouse.settings.aliases, ("operation", "dance"): "chat"}
    warehouse = replace(warehouse, settings=replace(warehouse.settings, aliases=aliases))
    project.must("run")
    assert warehouse.check()["unmapped_labels"] == []


def partial_selections(project: DbtProject, warehouse: Warehouse) -> None:
    """A rollup that skipped builds, or ran ahead of its input's, misses no change."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON + DAY)])
    project.must("run", "--select", "int_usage__hourly")
    project.must("run", "--select", "monthly_token_usage")
    warehouse.insert([Event("3", NOON + 40 * DAY)])
    project.must("run", "--select", "int_usage__hourly")
    project.must("run", "--select", "daily_token_usage")
    project.must("run")
    warehouse.check()


def lost_log(project: DbtProject, warehouse: Warehouse) -> None:
    """A rollup that is further behind than the log of changes reaches is rebuilt whole."""
    reach = Edit("macros/protocol/build_rollup.sql", "return(1000000)", "return(2)")
    project = replace(project, edits=(*project.edits, reach))
    base = ("--select", "int_usage__hourly")
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    for number in (2, 3, 4):
        warehouse.insert([Event(str(number), NOON + number * DAY)])
        project.must("run", *(base if number > 2 else ()))
    # A build that changes no row takes a number, too.
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking_raw.usage_events set metadata = '{}' where idempotency_key = '1'"
        )
    project.must("run", *base)
    project.must("run")
    warehouse.check()
    warehouse.insert([Event("5", NOON + 5 * DAY)])
    project.must("run", "--select", "int_usage__hourly")
    with closing(warehouse.connect()) as connection:
        connection.execute("delete from token_tracking.rollup_changes")
    project.must("run")
    warehouse.check()


def empty_is_refused(project: DbtProject, warehouse: Warehouse) -> None:
    """--empty would move the state over rows that were never read."""
    project.must("run")
    warehouse.insert([Event("1", NOON)])
    project.must("run", "--select", "int_usage__hourly")
    refused = project.run("run", "--empty", "--select", "daily_token_usage")
    project.must("run")
    assert warehouse.check()["daily_token_usage"]
    assert "cannot be built with --empty" in refused.said, refused.said


def restored_tables(project: DbtProject, warehouse: Warehouse) -> None:
    """Raw rows put back, or taken away, under transaction numbers of old."""
    warehouse.insert([Event("1", NOON), Event("2", NOON)])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "create table token_tracking_raw.restored"
            " (like token_tracking_raw.usage_events including all);"
            " insert into token_tracking_raw.restored"
            " select * from token_tracking_raw.usage_events where idempotency_key = '1';"
            " alter table token_tracking_raw.usage_events rename to lost;"
            " alter table token_tracking_raw.restored rename to usage_events"
        )
    project.must("run")
    warehouse.check()
    with closing(warehouse.connect()) as connection:
        connection.execute("truncate token_tracking_raw.usage_events")
    project.must("run")
    assert warehouse.check()["monthly_token_usage"] == []


def restored_elsewhere(project: DbtProject, warehouse: Warehouse) -> None:
    """An older dump in another cluster, or another database, where all else is as it was."""
    warehouse.insert([Event(str(number), NOON) for number in range(3)])
    project.must("run")
    for key, part in enumerate(("cluster", "database")):
        with closing(warehouse.connect()) as connection:
            connection.execute(
                f"delete from token_tracking_raw.usage_events where idempotency_key = '{key}';"
                " update token_tracking.build_state"
                rf" set fingerprint = regexp_replace(fingerprint, '{part} \d+', '{part} 1')"
            )
        project.must("run")
        warehouse.check()


def changed_view(project: DbtProject, warehouse: Warehouse) -> None:
    """A view that the base reads was another one, and only the base is built."""
    warehouse.insert([Event("1", NOON), Event("2", NOON)], voids=[("acme", "2")])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "create or replace view token_tracking.stg_usage__voids as"
            " select tenant_id as requester_tenant_id, idempotency_key, ingest_xid"
            " from token_tracking_raw.usage_voids where false"
        )
    project.must("run", "--select", "int_usage__hourly")
    agree(warehouse.rows(f"select sum(event_count) from {BASE}"), [(2,)])
    project.must("run")
    warehouse.check()


def made_anew(project: DbtProject, warehouse: Warehouse) -> None:
    """A rollup that was dropped and recreated empty is filled again; its views stay."""
    warehouse.insert([Event("1", NOON, agent="bot")])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        for mart in ("hourly_token_usage", "daily_agent_token_usage"):
            connection.execute(
                f"create table token_tracking.copy (like token_tracking.{mart} including all);"
                f" drop table token_tracking.{mart} cascade;"
                f" alter table token_tracking.copy rename to {mart};"
                f" create view public.on_{mart} as select * from token_tracking.{mart}"
            )
    project.must("run")
    assert warehouse.check()["hourly_token_usage"]
    assert warehouse.rows("select event_count from public.on_daily_agent_token_usage") == [(1,)]


# A raw table is emptied and filled again; its rows are new ones, or keep their numbers.
PURGE = (
    "create temporary table kept on commit drop as select * from {0};"
    " truncate {0}; insert into {0} select * from kept"
)
PURGE_WITH_NUMBERS = (
    "alter table {0} disable trigger stamp_row; "
    f"{PURGE}; alter table {{0}} enable always trigger stamp_row"
)


def rewritten_tables(project: DbtProject, warehouse: Warehouse) -> None:
    """A raw table is written again by a transaction that ends when a build has begun."""
    owners = [("bot", NOON - DAY, "owner")]
    warehouse.insert([Event("1", NOON, agent="bot"), Event("2", NOON + DAY)], owners=owners)
    project.must("run")
    for table in ("token_tracking_raw.usage_events", "token_tracking_raw.agent_owners"):
        with closing(warehouse.connect(autocommit=False)) as other:
            other.execute(PURGE_WITH_NUMBERS.format(table))
            build = project.start("run", "--select", "config.materialized:token_tracking_rollup")
            until_waiting_for(warehouse, table)
            other.commit()
        result = build.wait()
        assert result.green, result.said
        warehouse.check()


def old_numbers(project: DbtProject, warehouse: Warehouse) -> None:
    """A row comes under the number of a transaction that was seen."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    warehouse.insert([Event("2", NOON)])
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking_raw.usage_events set ingest_xid = 3 where idempotency_key = '2'"
        )
    project.must("run")
    warehouse.check()


def future_snapshot(project: DbtProject, warehouse: Warehouse) -> None:
    """The transaction counter was set back since the build."""
    warehouse.insert([Event("1", NOON)])
    project.must("run")
    with closing(warehouse.connect()) as connection:
        connection.execute(
            "update token_tracking.build_state set snapshot = '1000000000:1000000000:'"
            " where snapshot is not null"
        )
    warehouse.insert([Event("2", NOON)])
    project.must("run")
    warehouse.check()


HISTORIES: list[Callable[[DbtProject, Warehouse], None]] = [
    late_commit,
    late_void,
    nothing_new,
    commit_during_build,
    two_builds_wait,
    payer_loses_everything,
    last_event_is_voided,
    void_first,
    added_and_recounted,
    owner_of_new_events,
    updated_in_place,
    state_is_not_saved,
    many_groups,
    sold_agent,
    corrected_owner,
    old_event,
    half_hour_zone,
    midnight_comes_twice,
    changed_zone,
    new_alias,
    partial_selections,
    lost_log,
    empty_is_refused,
    restored_tables,
    restored_elsewhere,
    changed_view,
    made_anew,
    rewritten_tables,
    old_numbers,
    future_snapshot,
]


def agree(found: object, expected: object) -> None:
    """Raise WrongTotalsError where two things differ."""
    if found != expected:
        message = f"found {found}, expected {expected}"
        raise WrongTotalsError(message)


def written(warehouse: Warehouse) -> list[tuple[str, ...]]:
    """Return where each row of each rollup is, and the transaction that wrote it."""
    return [
        (mart, *row)
        for mart in ("int_usage__hourly", *ROLLUPS)
        for row in warehouse.rows(
            f"select ctid::text, xmin::text from token_tracking.{mart} order by 1"
        )
    ]


def until_waiting_for(warehouse: Warehouse, relation: str, builds: int = 1) -> None:
    """Return once the given number of builds wait for a lock on a relation."""
    deadline = time.monotonic() + 30
    while (
        len(
            warehouse.rows(
                f"select 1 from pg_locks where relation = '{relation}'::regclass and not granted"
            )
        )
        < builds
    ):
        assert time.monotonic() < deadline, f"no build waits for {relation}"
        time.sleep(0.02)
