"""The unified procedures, on the embedded server and on PostgreSQL 15."""

from __future__ import annotations

import json
import random
import re
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest

from tests.support.bad_events import BAD, EDGE, WITHOUT_NUMBER
from tests.support.databases import Database
from tests.support.procedures import BATCH, canonical, each_form, event, send
from tests.support.waiting import until
from token_tracking.errors import InvalidUsageError
from token_tracking.event.fields import EVENT_FIELDS
from token_tracking.event.kept import MAX_KEPT_BYTES
from token_tracking.event.rules import to_wire

if TYPE_CHECKING:
    from collections.abc import Callable

QUICKLY = (
    "select recorded from token_tracking_raw.record_canonical_batch("
    "%s::json, now(), now() + interval '5 minutes')"
)


def test_the_same_event_counts_once_another_is_a_conflict(each_emptied: Database):
    first, other = event("k", tokens=5), event("k", tokens=6, model="m")
    assert send(each_emptied, [first]) == (1, 0, 0, 0, None)
    assert send(each_emptied, [first]) == (0, 1, 0, 0, None)
    assert send(each_emptied, [other]) == send(each_emptied, [other])
    *counts, problems = send(each_emptied, [first, other, event("l")])
    assert counts == [1, 1, 1, 0]
    found = "tokens, model: different from the event recorded with this idempotency_key"
    assert problems == [
        {"index": 1, "kind": "conflict", "reason": f"{found}; the first one counts"}
    ]
    assert each_emptied.rows(
        "select idempotency_key, tokens from token_tracking_raw.usage_events order by 1"
    ) == [("k", 5), ("l", 5)]
    kept = "select tokens, model from token_tracking_raw.usage_event_conflicts"
    assert each_emptied.rows(kept) == [(6, "m")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 6),
        ("input_tokens", 1),
        ("output_tokens", 0),
        ("token_type", "embedding"),
        ("operation", "chat"),
        ("model", "gpt-4o"),
        ("agent_id", "a"),
        ("provider", "openai"),
        ("service_tier", "batch"),
        ("cache_read_tokens", 0),
        ("cache_write_tokens", 2),
        ("cache_write_long_tokens", 0),
        ("reasoning_tokens", 1),
    ],
)
@each_form
def test_each_compared_field_makes_another_payload(
    emptied: Database, form: Callable[[list], str], field: str, value: object
):
    parts = {"input_tokens": 3, "output_tokens": 2} if field.endswith("_tokens") else {}
    if field == "cache_write_long_tokens":
        parts["cache_write_tokens"] = 1
    first = event("k", **parts)
    send(emptied, form([first]))
    assert send(emptied, form([event("k", **{**parts, field: value})]))[2] == 1
    assert send(emptied, form([first]))[1] == 1
    [[reason]] = emptied.rows(
        "select p.problem ->> 'reason' from token_tracking_raw.track_token_usage_batch(%s::json) b"
        " cross join jsonb_array_elements(b.problems) as p (problem)",
        (form([event("k", **{**parts, field: value})]),),
    )
    assert reason.startswith(f"{field}: different")
    assert emptied.value("select count(*) from token_tracking_raw.usage_event_conflicts") == 1


def test_a_retry_may_differ_in_what_is_not_compared(database: Database):
    send(database, [event("k")])
    retry = event(
        "k",
        occurred_at="2026-05-06T07:08:09Z",
        metadata={"attempt": 2},
        conversation_id="c",
        collection_id="d",
        token_type="LLM ",
    )
    assert send(database, [retry]) == (0, 1, 0, 0, None)


def test_in_one_batch_the_first_position_wins(each_emptied: Database):
    batch = [event("b"), event("a", tokens=1), event("a", tokens=2), event("a", tokens=1)]
    *counts, problems = send(each_emptied, batch)
    assert counts == [2, 1, 1, 0]
    assert [problem["index"] for problem in problems] == [2]
    stored = "select tokens from token_tracking_raw.usage_events where idempotency_key = 'a'"
    assert each_emptied.value(stored) == 1


@pytest.mark.parametrize("name", [*BAD, *WITHOUT_NUMBER])
def test_a_bad_event_is_refused_and_stops_no_other(each_emptied: Database, name: str):
    fields, field = (BAD | WITHOUT_NUMBER)[name]
    bad = event("bad", **fields)
    batch = [event("before"), bad, event("after")]
    *counts, problems = send(each_emptied, batch)
    assert counts == [2, 0, 0, 1]
    [problem] = problems
    assert (problem["index"], problem["kind"]) == (1, "rejection")
    assert problem["reason"].startswith(f"{field}: ")
    assert "; must be " in problem["reason"] or "unknown field" in problem["reason"]
    [(payload, reason)] = each_emptied.rows(
        "select payload::text, reason from token_tracking_raw.usage_event_rejections"
    )
    # Unchanged, except that characters that jsonb cannot hold are kept as their escapes.
    if len(sent := json.dumps(bad)) <= MAX_KEPT_BYTES:
        assert payload == re.sub(r"\\(u0000|ud[89a-f]..)", r"\\\\\1", sent)
    else:
        assert len(payload) < 2000
    readable = (
        "select payload::jsonb ->> 'tenant_id' from token_tracking_raw.usage_event_rejections"
    )
    assert len(each_emptied.rows(readable)) == 1
    assert reason == problem["reason"]
    # The same batch again: the bad one is kept once.
    assert send(each_emptied, batch)[:4] == (0, 2, 0, 1)
    count = "select count(*) from token_tracking_raw.usage_event_rejections"
    assert each_emptied.value(count) == 1


@pytest.mark.parametrize("name", EDGE)
def test_an_event_at_the_edge_is_recorded_as_meant(each_emptied: Database, name: str):
    fields, stored = EDGE[name]
    assert send(each_emptied, [event("edge", **fields)]) == (1, 0, 0, 0, None)
    columns = ", ".join(EVENT_FIELDS)
    row = each_emptied.rows(f"select {columns} from token_tracking_raw.usage_events")[0]
    found = dict(zip(EVENT_FIELDS, row, strict=True))
    assert found | stored == found


@pytest.mark.parametrize("text", ["{}", "null", '"x"', "7", "true"])
def test_what_is_not_an_array_is_one_rejection(each_emptied: Database, text: str):
    *counts, problems = send(each_emptied, text)
    assert counts == [0, 0, 0, 1]
    assert problems[0]["index"] is None
    assert problems[0]["reason"].endswith("must be an array of objects")
    kept = "select payload::text from token_tracking_raw.usage_event_rejections"
    assert each_emptied.rows(kept) == [(text,)]


def test_elements_that_are_no_objects_are_rejections(each_emptied: Database):
    *counts, problems = send(each_emptied, [1, None, "x", [], True, event("k")])
    assert counts == [1, 0, 0, 5]
    assert [problem["reason"] for problem in problems] == [
        f"event: {kind}; must be an object"
        for kind in ("a number", "null", "a string", "an array", "a boolean")
    ]


def test_an_empty_array_is_nothing(each_emptied: Database):
    assert send(each_emptied, []) == (0, 0, 0, 0, None)


def test_numbers_that_no_column_holds_stop_no_other_event(each_emptied: Database):
    text = (
        '[{"tenant_id": "a", "tokens": 1, "metadata": {"n": 1e200000}},'
        ' {"tenant_id": "a", "tokens": 1e3}, {"tenant_id": "a", "tokens": 1e-3},'
        ' {"tenant_id": "a", "tokens": 1e300}]'
    )
    *counts, problems = send(each_emptied, text)
    assert counts == [1, 0, 0, 3]
    assert [problem["index"] for problem in problems] == [0, 2, 3]


def test_a_missing_key_is_generated_and_zero_tokens_are_stored(database: Database):
    nothing = [{"tenant_id": "a", "tokens": 0}, {"tenant_id": "a", "output_tokens": 0}]
    assert send(database, nothing)[:2] == (2, 0)
    rows = database.rows("select idempotency_key, tokens from token_tracking_raw.usage_events")
    assert {tokens for _, tokens in rows} == {0}
    assert all(UUID(key) for key, _ in rows)


def test_nothing_told_is_no_event_of_zero_tokens(each_emptied: Database):
    nothing = [{"tenant_id": "a"}, {"tenant_id": "a", "tokens": None, "input_tokens": None}]
    *counts, problems = send(each_emptied, [*nothing, event("k")])
    assert counts == [1, 0, 0, 2]
    assert {problem["reason"].partition(",")[0] for problem in problems} == {"tokens: missing"}
    call = "select token_tracking_raw.track_token_usage('acme', null)"
    assert each_emptied.value(call) is True
    assert each_emptied.value("select count(*) from token_tracking_raw.usage_events") == 1
    assert each_emptied.value(call.replace("null", "0")) is True
    assert each_emptied.value("select count(*) from token_tracking_raw.usage_events") == 2


@each_form
def test_a_batch_takes_its_keys_in_their_order(each_emptied: Database, form: Callable[[list], str]):
    """So of two batches with the same keys, none holds one that the other one had before."""
    blocked = (
        "select count(*)::int from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    )
    results: list[tuple] = []
    batch = form([event("k9"), event("k5"), event("k1")])
    with (
        closing(psycopg.connect(each_emptied.url)) as holder,
        closing(psycopg.connect(each_emptied.url)) as other,
    ):
        holder.execute(BATCH, (form([event("k5")]),))
        waiter = threading.Thread(target=lambda: results.append(send(each_emptied, batch)))
        waiter.start()
        until(lambda: each_emptied.value(blocked) == 1)
        other.execute("set lock_timeout = '100ms'")
        other.commit()
        assert other.execute(BATCH, (form([event("k9")]),)).fetchone()[0] == 1
        other.rollback()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(BATCH, (form([event("k1")]),))
        other.rollback()
        holder.rollback()
        waiter.join(10)
    assert results[0][0] == 3


@each_form
def test_a_thousand_keys_from_32_connections_in_any_order(
    each_emptied: Database, form: Callable[[list], str]
):
    """There is no deadlock, no key is lost, and none is recorded twice."""
    events = [event(f"key-{number}", tokens=number) for number in range(1, 1001)]
    ready = threading.Barrier(32)
    counts: list[tuple] = []
    errors: list[Exception] = []

    def work(seed: int) -> None:
        mine = events.copy()
        random.Random(seed).shuffle(mine)
        try:
            with closing(each_emptied.connect()) as connection:
                ready.wait()
                for start in range(0, 1000, 250):
                    part = form(mine[start : start + 250])
                    counts.append(connection.execute(BATCH, (part,)).fetchone())
        except psycopg.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(recorded for recorded, *_ in counts) == 1000
    assert sum(duplicates for _, duplicates, *_ in counts) == 31_000
    total = "select count(*), sum(tokens)::bigint from token_tracking_raw.usage_events"
    assert each_emptied.rows(total) == [(1000, 500_500)]


@each_form
def test_a_waiting_duplicate_sees_the_row_it_waited_for(
    each_database: Database, form: Callable[[list], str]
):
    """Another transaction waits while the one that holds the key commits or rolls back."""
    for commits, expected in ((True, (2, 1, 1, 0)), (False, (4, 0, 0, 0))):
        key = f"{form.__name__}-{commits}"
        before, after = event(f"a{key}"), event(f"z{key}")
        mine = form([before, event(key, tokens=9), event(f"{key}+"), after])
        results: list[tuple] = []
        with closing(psycopg.connect(each_database.url)) as holder:
            holder.execute(BATCH, (form([event(key), event(f"{key}+")]),))
            waiter = threading.Thread(
                target=lambda mine=mine, results=results: results.append(send(each_database, mine))
            )
            waiter.start()
            waiter.join(0.3)
            assert waiter.is_alive()
            holder.commit() if commits else holder.rollback()
            waiter.join(10)
        assert results[0][:4] == expected
        assert [problem["index"] for problem in results[0][4] or []] == ([1] if commits else [])


@each_form
def test_a_key_beyond_the_snapshot_is_a_serialization_failure(
    each_database: Database, form: Callable[[list], str]
):
    with closing(psycopg.connect(each_database.url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select")
        assert send(each_database, form([event("k")]))[:2] == (1, 0)
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute(BATCH, (form([event("a"), event("k")]),))
        connection.rollback()
        assert connection.execute(BATCH, (form([event("a"), event("k")]),)).fetchone()[:2] == (1, 1)


def test_who_waited_for_the_same_keys_needs_no_closer_look(each_database: Database):
    keys = [event(f"waited-{number}") for number in range(3)]
    recorded: list[object] = []
    with closing(psycopg.connect(each_database.url)) as holder:
        holder.execute(BATCH, (canonical(keys[:2]),))
        waiter = threading.Thread(
            target=lambda: recorded.append(each_database.value(QUICKLY, (canonical(keys),)))
        )
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        holder.commit()
        waiter.join(10)
    assert recorded == [1]


@pytest.mark.parametrize("level", ["off", "local", "remote_write"])
def test_the_commit_is_durable_whatever_the_session_says(each_emptied: Database, level: str):
    with closing(each_emptied.connect()) as connection:
        connection.execute(f"set synchronous_commit = {level}")
        for call in (
            "select token_tracking_raw.track_token_usage('a', 1)",
            "select token_tracking_raw.void_token_usage('a', 'k', 'why')",
            "select token_tracking_raw.record_agent_owner('agent', 'a')",
            "select token_tracking_raw.reject_usage_event('{}', 'why')",
        ):
            with connection.transaction():
                connection.execute(call)
                # Constraints that are checked at commit, after the procedure has returned.
                assert connection.execute("show synchronous_commit").fetchone() == ("on",)
            assert connection.execute("show synchronous_commit").fetchone() == (level,)


def test_one_event_by_the_single_procedure(each_emptied: Database):
    call = "select token_tracking_raw.track_token_usage"
    assert each_emptied.value(f"{call}('acme', 12)") is True
    assert each_emptied.value(f"{call}('acme', 12, p_idempotency_key => 'k')") is True
    assert each_emptied.value(f"{call}('acme', 12, p_idempotency_key => 'k')") is True
    assert each_emptied.value(f"{call}('acme', 13, p_idempotency_key => 'k')") is False
    assert each_emptied.value(f"{call}('acme', -1)") is False
    assert each_emptied.value(f"{call}('acme', null)") is True
    ids = "gen_random_uuid(), 7, p_agent_id => gen_random_uuid()"
    assert each_emptied.value(f"{call}({ids}, p_conversation_id => gen_random_uuid())") is True
    everything = "'acme', 7, 'embedding', 'batch', 'm', '{\"a\": 1}', 'k2', 'agent', 'talk'"
    assert each_emptied.value(f"{call}({everything})") is True
    row = each_emptied.rows(
        "select tokens, token_type, operation, model, metadata, agent_id, conversation_id,"
        " occurred_at = recorded_at from token_tracking_raw.usage_events"
        " where idempotency_key = 'k2'"
    )
    assert row == [(7, "embedding", "batch", "m", {"a": 1}, "agent", "talk", True)]


@pytest.mark.parametrize(
    "arguments",
    [
        "'acme', 12",
        "'aé', 12, ' LLM', 'Chat', '', '{\"a\\n\": [null, 1.50]}', 'k', 'agent', 'talk'",
        "gen_random_uuid(), 7, p_metadata => null",
    ],
)
def test_the_single_procedure_needs_no_closer_look(each_emptied: Database, arguments: str):
    """It passes events on in the form that the batch records in one pass."""
    with closing(each_emptied.connect()) as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "create or replace function token_tracking_raw.cleaned_events("
            "elements jsonb, moment timestamptz) returns table ("
            "place bigint, element jsonb, event token_tracking_raw.usage_event"
            ") language plpgsql as $$ begin raise 'a closer look'; end $$"
        )
        call = f"select token_tracking_raw.track_token_usage({arguments})"
        assert connection.execute(call).fetchone() == (True,)
        [(tokens, at)] = connection.execute(
            "select tokens, occurred_at = recorded_at from token_tracking_raw.usage_events"
        ).fetchall()
        assert (tokens in {12, 7}, at) == (True, True)


def test_a_void_is_kept_once_before_or_after_its_event(each_emptied: Database):
    call = "select token_tracking_raw.void_token_usage(%s, %s, %s)"
    assert each_emptied.value(call, ("a", "k", "test call")) is True
    assert each_emptied.value(call, ("a", "k", "again")) is True
    stored = (
        "select tenant_id, idempotency_key, reason, voided_by from token_tracking_raw.usage_voids"
    )
    assert each_emptied.rows(stored) == [("a", "k", "test call", "postgres")]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", "k", "r"), "tenant_id"),
        (("a", None, "r"), "idempotency_key"),
        (("a", "x" * 256, "r"), "idempotency_key"),
        (("a", "k", ""), "reason"),
        (("a", "k", "x" * 1001), "reason"),
    ],
)
def test_a_void_that_breaks_a_rule_is_a_rejection(database: Database, arguments: tuple, field: str):
    call = "select token_tracking_raw.void_token_usage(%s, %s, %s)"
    assert database.value(call, arguments) is False
    [(payload, reason)] = database.rows(
        "select payload, reason from token_tracking_raw.usage_event_rejections"
    )
    assert reason.startswith(f"{field}: ")
    assert tuple(payload["void"].values()) == arguments


def test_a_load_is_voided_by_labels_recorded_before_version_4(database: Database):
    events = [event("k", operation="vector_search"), event("l")]
    assert send(database, events)[0] == 2
    with closing(database.connect()) as connection:
        connection.execute(
            "update token_tracking_raw.usage_events set operation = 'ector_search', recorded_at ="
            " (select applied_at from token_tracking_raw.schema_versions where version = 4)"
            " where idempotency_key = 'k'"
        )
    call = "select * from token_tracking_raw.void_recorded_usage(%s, '{0,1}', 'why', false)"
    assert database.rows(call, (json.dumps(events),)) == [(2, 0, 0, 0)]
    assert database.rows(call, (json.dumps(events),)) == [(0, 2, 0, 0)]
    assert database.value("select count(*) from token_tracking_raw.usage_voids") == 2


def test_owners_are_appended_and_corrected_by_revision(each_emptied: Database):
    call = "select token_tracking_raw.record_agent_owner(%s, %s, %s)"
    for owner in ("acme", "acme", "globex", "acme"):
        assert each_emptied.value(call, ("agent", owner, "2026-01-01T00:00:00Z")) is True
    assert each_emptied.value(call, ("agent", None, "2026-02-01T00:00:00Z")) is True
    assert each_emptied.rows(
        "select valid_from::date::text, revision, owner_tenant_id"
        " from token_tracking_raw.agent_owners order by 1, 2"
    ) == [
        ("2026-01-01", 1, "acme"),
        ("2026-01-01", 2, "globex"),
        ("2026-01-01", 3, "acme"),
        ("2026-02-01", 1, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", "a", "2026-01-01Z"), "agent_id"),
        ((None, "a", "2026-01-01Z"), "agent_id"),
        (("agent", "", "2026-01-01Z"), "owner_tenant_id"),
        (("agent", "a", None), "valid_from"),
        (("agent", "a", "infinity"), "valid_from"),
        (("agent", "a", "1999-12-31T23:59:59Z"), "valid_from"),
    ],
)
def test_an_owner_that_breaks_a_rule_is_a_rejection(
    database: Database, arguments: tuple, field: str
):
    call = "select token_tracking_raw.record_agent_owner(%s, %s, %s)"
    assert database.value(call, arguments) is False
    reason = "select reason from token_tracking_raw.usage_event_rejections"
    assert str(database.value(reason)).startswith(f"{field}: ")
    assert database.value("select count(*) from token_tracking_raw.agent_owners") == 0


def test_owners_recorded_at_once_get_their_own_revisions(database: Database):
    call = "select token_tracking_raw.record_agent_owner('agent', %s, '2026-01-01Z')"
    threads = [
        threading.Thread(target=database.value, args=(call, (f"tenant-{number}",)))
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    revisions = database.rows("select revision from token_tracking_raw.agent_owners order by 1")
    assert revisions == [(number,) for number in range(1, 13)]


def test_the_transaction_that_wrote_a_row_is_its_ingest_xid(each_emptied: Database):
    with closing(psycopg.connect(each_emptied.url)) as connection:
        connection.execute(BATCH, (json.dumps([event("k"), event("k", tokens=9), {}]),))
        connection.execute("select token_tracking_raw.void_token_usage('a', 'k', 'r')")
        connection.execute("select token_tracking_raw.record_agent_owner('agent', 'a')")
        [(xid,)] = connection.execute("select pg_current_xact_id()::text::bigint").fetchall()
        connection.commit()
    for table in (
        "usage_events",
        "usage_event_conflicts",
        "usage_event_rejections",
        "usage_voids",
        "agent_owners",
    ):
        assert each_emptied.rows(f"select ingest_xid from token_tracking_raw.{table}") == [(xid,)]


def test_a_search_path_of_the_caller_changes_nothing(database: Database):
    with closing(database.connect()) as connection:
        connection.execute("create schema evil")
        connection.execute(
            "create function evil.lower(text) returns text language sql as $$ select 'evil' $$"
        )
        connection.execute(
            "create function evil.coalesce_text(text) returns text language sql as $$ select '' $$"
        )
        connection.execute(
            "create function evil.btrim(text, text) returns text language sql"
            " as $$ select 'evil' $$"
        )
        connection.execute("set search_path = evil, pg_catalog")
        connection.execute(BATCH, (json.dumps([event("k", operation=" Chat")]),))
    assert database.value("select operation from token_tracking_raw.usage_events") == "chat"


def test_equal_refusals_without_a_key_are_each_kept(each_emptied: Database):
    """Nothing shows that they are one call; in a batch, a null key counts as missing, too."""
    for _ in range(3):
        call = "select token_tracking_raw.track_token_usage('acme', -1)"
        assert each_emptied.value(call) is False
    send(each_emptied, [event(None, tokens=-1), event(None, tokens=-1)])
    count = "select count(*) from token_tracking_raw.usage_event_rejections"
    assert each_emptied.value(count) == 5


@pytest.mark.parametrize(
    "setting",
    [
        "standard_conforming_strings = off",
        "datestyle = 'German, DMY'",
        "timezone = 'Asia/Kolkata'",
        "intervalstyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "search_path = ''",
        "default_transaction_isolation = 'serializable'",
    ],
)
def test_a_session_set_up_otherwise_gets_the_same_answer(each_emptied: Database, setting: str):
    text = (
        '[{"tenant_id": "a", "idempotency_key": "k", "tokens": 1,'
        ' "occurred_at": "2026-02-03T00:00:00.1234567Z"},'
        ' {"tenant_id": "a", "tokens": 1, "model": "\\u0000"}]'
    )
    now = datetime.now(UTC)
    quickly = [to_wire({"tenant_id": "a", "tokens": 1}, now).payload.decode()]
    with closing(each_emptied.connect()) as connection:
        connection.execute(f"set {setting}")
        *counts, problems = connection.execute(BATCH, (text,)).fetchone()
        [recorded] = connection.execute(QUICKLY, (f"[{','.join(quickly)}]",)).fetchone()
    assert (counts, recorded) == ([1, 0, 0, 1], 1)
    assert problems[0]["reason"].startswith("model: text with NUL")
    when = (
        "select min(occurred_at) = '2026-02-03 00:00:00.123456+00'"
        " from token_tracking_raw.usage_events"
    )
    assert each_emptied.value(when) is True


def test_a_key_twice_in_a_batch_needs_no_closer_look(each_emptied: Database):
    def array(*tokens: int) -> str:
        return canonical([*(event("k", tokens=n) for n in tokens), event(f"k{tokens}")])

    with closing(each_emptied.connect()) as connection:
        with connection.transaction(force_rollback=True):
            [recorded] = connection.execute(QUICKLY, (array(5, 5, 6),)).fetchone()
        assert recorded == 2
        *counts, problems = connection.execute(BATCH, (array(5, 5, 6),)).fetchone()
        assert counts == [2, 1, 1, 0]
        assert [problem["index"] for problem in problems] == [2]
        *counts, problems = connection.execute(BATCH, (array(7, 5, 6, 5),)).fetchone()
        assert counts == [1, 2, 2, 0]
        assert sorted(problem["index"] for problem in problems) == [0, 2]
    stored = "select tokens from token_tracking_raw.usage_events where idempotency_key = 'k'"
    assert each_emptied.rows(stored) == [(5,)]
    kept = "select tokens from token_tracking_raw.usage_event_conflicts order by tokens"
    assert each_emptied.rows(kept) == [(6,), (7,)]


@each_form
def test_known_keys_and_conflicts_never_read_the_whole_table(
    each_database: Database, form: Callable[[list], str]
):
    """Nor with plans that were cached when the table was empty."""

    def array(start: int, tokens: int) -> str:
        return form([event(f"k{number}", tokens=tokens) for number in range(start, start + 20)])

    scans = (
        "select seq_scan from pg_stat_xact_all_tables"
        " where relid = 'token_tracking_raw.usage_events'::regclass"
    )
    with closing(each_database.connect()) as connection, connection.transaction():
        for start in range(0, 4000, 20):
            *counts, _ = connection.execute(BATCH, (array(start, 1),)).fetchone()
            assert counts == [20, 0, 0, 0]
            *counts, _ = connection.execute(BATCH, (array(start, 2),)).fetchone()
            assert counts == [0, 0, 20, 0]
            *counts, _ = connection.execute(BATCH, (array(start, 1),)).fetchone()
            assert counts == [0, 20, 0, 0]
        assert connection.execute(scans).fetchone() == (0,)


@pytest.mark.parametrize("number", ["1e2", "1E0", "1.5e1", "100.00", "1.5", "1e-1", "-0", "-1e0"])
def test_python_and_sql_agree_on_numbers_as_json_writes_them(emptied: Database, number: str):
    text = f'{{"tenant_id": "a", "idempotency_key": "k", "tokens": {number}}}'
    try:
        in_python = json.loads(to_wire(json.loads(text), datetime.now(UTC)).payload)["tokens"]
    except InvalidUsageError as error:
        in_python = error.reason
    *counts, problems = send(emptied, f"[{text}]")
    assert counts == [1, 0, 0, 0] if problems is None else counts == [0, 0, 0, 1]
    stored = "select tokens from token_tracking_raw.usage_events"
    assert in_python == (problems[0]["reason"] if problems else emptied.value(stored))
