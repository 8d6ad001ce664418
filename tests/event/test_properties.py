"""Arbitrary text, numbers, JSON and times, through Python and SQL: no error, no loss, one verdict.

A failure prints the example and a blob that replays it; `make soak` tries many more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bad_events import GOOD, as_if_canonical
from tests.support.databases import Database, emptied_database
from tests.support.lengths import SOAK_SECONDS
from tests.support.strategies import ANY_TEXT, JSON, LIKELY, PYTHON_VALUES, TEXT, VALUES
from tests.support.waiting import ended
from token_tracking import InvalidUsageError, UsageEvent, UsageTracker
from token_tracking.client.requests import EventRequest, RejectionRequest
from token_tracking.client.spool.spool import Spool
from token_tracking.embedded.server import Server
from token_tracking.event.fields import EVENT_FIELDS, NO_TOKENS
from token_tracking.event.kept import keepable
from token_tracking.event.mended_metadata import event_of
from token_tracking.event.rules import to_wire

pytestmark = pytest.mark.timeout(3600 if SOAK_SECONDS else 300)


EVENTS = st.one_of(
    LIKELY, LIKELY, st.dictionaries(st.one_of(st.sampled_from(EVENT_FIELDS), ANY_TEXT), JSON)
)
BATCH = "select * from token_tracking_raw.track_token_usage_batch(%s::json)"
QUICKLY = (
    "select recorded from token_tracking_raw.record_canonical_batch("
    "%s::json, now(), now() + interval '5 minutes')"
)
COUNTS = (
    "select (select count(*) from token_tracking_raw.usage_events)::int,"
    " (select count(*) from token_tracking_raw.usage_event_rejections)::int"
)


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[tuple]]:
    with closing(database.connect()) as connection:
        yield connection


def python_refuses(fields: dict[str, object]) -> str | None:
    try:
        to_wire(fields, datetime.now(UTC))
    except InvalidUsageError as error:
        return error.reason
    return None


@given(events=st.lists(EVENTS, min_size=1, max_size=5))
def test_python_and_sql_give_the_same_verdict(
    connection: psycopg.Connection[tuple], events: list[dict[str, object]]
):
    assert_same_verdicts(connection, events)


@pytest.mark.parametrize(
    "fields",
    [
        ("occurred_at",),
        ("metadata",),
        ("tokens", "input_tokens", "output_tokens"),
        ("tenant_id", "idempotency_key", "agent_id", "model"),
    ],
    ids="+".join,
)
@given(data=st.data())
def test_of_each_field_python_and_sql_have_one_opinion(
    connection: psycopg.Connection[tuple], fields: tuple[str, ...], data: st.DataObject
):
    changes = st.fixed_dictionaries({}, optional={name: VALUES.get(name, TEXT) for name in fields})
    drawn = data.draw(st.lists(changes, min_size=1, max_size=8))
    assert_same_verdicts(connection, [{**GOOD, **one} for one in drawn])


def assert_same_verdicts(
    connection: psycopg.Connection[tuple], events: list[dict[str, object]]
) -> None:
    """In one batch, in which a bad event must not affect its neighbours."""
    # Each has its own key: another rule decides about equal keys.
    for number, fields in enumerate(events):
        if isinstance(fields.get("idempotency_key"), str) and fields["idempotency_key"]:
            fields["idempotency_key"] = f"{number}{fields['idempotency_key']}"
    in_python = {n for n, fields in enumerate(events) if python_refuses(fields) is not None}
    assert refused_by_sql(connection, json.dumps(events, allow_nan=False), len(events)) == in_python
    # In the form that Python sends, and by itself: the quick way decides, wherever it can.
    for number, fields in enumerate(events):
        wire = f"[{as_if_canonical(fields)}]"
        assert refused_by_sql(connection, wire, 1) == ({0} if number in in_python else set())


def refused_by_sql(connection: psycopg.Connection[tuple], text: str, length: int) -> set[int]:
    with connection.transaction(force_rollback=True):
        recorded, duplicates, conflicts, rejected, problems = connection.execute(
            BATCH, (text,)
        ).fetchone() or (0, 0, 0, 0, None)
    assert recorded + duplicates + conflicts + rejected == length
    return {problem["index"] for problem in problems or () if problem["kind"] == "rejection"}


LABELS = st.one_of(
    st.text(st.sampled_from(" \t\n\x0b\x0cvVxé\u00a0\u0130\0"), max_size=6),
    st.sampled_from(["vector_search", "Vector", "embed", "v", "\x0b"]),
)
# Also if a key is reused with another payload.
LABELLED = st.fixed_dictionaries(
    {"idempotency_key": st.sampled_from(["k", "l"])},
    optional={"token_type": LABELS, "operation": LABELS, "tokens": st.integers(0, 1)},
).map(lambda changes: {**GOOD, **changes})
ALL_ROWS = (
    "select tenant_id, idempotency_key, tokens, token_type, operation, model, agent_id,"
    " conversation_id, collection_id, input_tokens, output_tokens, metadata::text,"
    " case when occurred_at <> recorded_at then occurred_at end"
    " from token_tracking_raw.usage_events order by 1, 2",
    "select tenant_id, idempotency_key, payload_hash, tokens, token_type, operation, model"
    " from token_tracking_raw.usage_event_conflicts order by 1, 2, 3",
    "select payload::text, reason from token_tracking_raw.usage_event_rejections order by 1, 2",
)


@pytest.fixture
def connection_15(server_15: Server) -> Iterator[psycopg.Connection[tuple]]:
    with closing(emptied_database(server_15).connect()) as connection:
        yield connection


@given(events=st.lists(st.one_of(EVENTS, LABELLED), min_size=1, max_size=6), data=st.data())
def test_each_postgresql_gives_the_same_verdicts_and_rows(
    connection: psycopg.Connection[tuple],
    connection_15: psycopg.Connection[tuple],
    events: list[dict[str, object]],
    data: st.DataObject,
):
    for number, fields in enumerate(events):
        if fields.get("idempotency_key") is None:  # or else a random one is made
            fields["idempotency_key"] = f"number {number}"
    form = data.draw(st.sampled_from([json.dumps, as_all_canonical]))
    text = form(events)
    assert outcome_of(connection, text) == outcome_of(connection_15, text)


def as_all_canonical(events: list[dict[str, object]]) -> str:
    return f"[{','.join(as_if_canonical(fields) for fields in events)}]"


def outcome_of(connection: psycopg.Connection[tuple], text: str) -> list[object]:
    """Send a batch twice; return the answers and all rows, and leave no rows behind."""
    with connection.transaction(force_rollback=True):
        answers: list[object] = [connection.execute(BATCH, (text,)).fetchone() for _ in range(2)]
        return answers + [connection.execute(query.encode()).fetchall() for query in ALL_ROWS]


@given(fields=EVENTS)
def test_what_python_sends_is_what_sql_takes(
    connection: psycopg.Connection[tuple], fields: dict[str, object]
):
    try:
        wire = to_wire(fields, datetime.now(UTC))
    except InvalidUsageError as error:
        payload = keepable(fields)
        with connection.transaction(force_rollback=True):
            connection.execute(
                "select token_tracking_raw.reject_usage_event(%s::json, %s)",
                (payload.decode(), RejectionRequest(payload, error.reason).reason),
            )
        return
    payload = f"[{wire.payload.decode()}]"
    with connection.transaction(force_rollback=True):
        assert connection.execute(BATCH, (payload,)).fetchone() == (1, 0, 0, 0, None)
    # And in the form that needs no closer look, which has no escapes outside of metadata.
    if all(
        len(text.encode()) <= 255 and json.dumps(text, ensure_ascii=False) == f'"{text}"'
        for text in fields.values()
        if isinstance(text, str)
    ):
        with connection.transaction(force_rollback=True):
            assert connection.execute(QUICKLY, (payload,)).fetchone() == (1,)


@given(
    calls=st.lists(
        st.one_of(
            EVENTS,
            st.dictionaries(st.sampled_from(EVENT_FIELDS), PYTHON_VALUES),
            st.dictionaries(ANY_TEXT, PYTHON_VALUES, max_size=3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_tracker_answers_whatever_it_is_given_and_keeps_it(
    running: tuple[UsageTracker, psycopg.Connection[tuple]], calls: list[dict[str, object]]
):
    tracker, connection = running
    before = tracker.stats()
    connection.execute("truncate token_tracking_raw.usage_event_rejections")
    events_before, _ = connection.execute(COUNTS).fetchone() or (0, 0)
    told = tracker.track_many_sync(calls)
    after = tracker.stats()
    events_after, kept_after = connection.execute(COUNTS).fetchone() or (0, 0)
    assert [type(one) for one in told] == [bool] * len(calls)
    assert ended(after) - ended(before) == len(calls)
    assert after.refused == after.spooled == 0
    assert events_after - events_before == after.recorded - before.recorded
    refused = refused_payloads(calls)
    assert after.rejected - before.rejected == len(refused)
    # A payload that is sent again with its key is kept once.
    assert kept_after == len(set(refused))


def refused_payloads(calls: list[dict[str, object]]) -> list[bytes]:
    """Return what is to be kept of the calls that Python refuses; each has a key or gets one.

    Metadata refuses no call, and one that is right but for its absent tokens counts nothing.
    """
    refused: list[bytes] = []
    for number, fields in enumerate(calls):
        given = {name: value for name, value in fields.items() if value is not None}
        given.setdefault("idempotency_key", f"made for call {number}")
        try:
            event_of(given, datetime.now(UTC))
        except Exception as error:  # raised by the rules, or by a value's own methods
            if not (isinstance(error, InvalidUsageError) and error.reason == NO_TOKENS):
                refused.append(keepable(given))
    return refused


@pytest.fixture
def running(
    database: Database, connection: psycopg.Connection[tuple]
) -> Iterator[tuple[UsageTracker, psycopg.Connection[tuple]]]:
    with UsageTracker(dsn=database.url, max_wait=10) as tracker:
        yield tracker, connection


@given(
    arguments=st.lists(PYTHON_VALUES, max_size=10),
    named=st.dictionaries(st.sampled_from(["input_tokens", "occurred_at"]), PYTHON_VALUES),
)
def test_a_call_never_raises(
    running: tuple[UsageTracker, psycopg.Connection[tuple]],
    arguments: list[object],
    named: dict[str, object],
):
    tracker, _ = running
    call = asyncio.run(tracker.track_token_usage(*arguments, **named))  # type: ignore[arg-type]
    assert isinstance(call, bool)
    assert isinstance(tracker.void_usage_sync(*(arguments + [None] * 3)[:3]), bool)  # type: ignore[arg-type]
    assert isinstance(tracker.record_agent_owner_sync(*(arguments + [None] * 3)[:3]), bool)  # type: ignore[arg-type]
    assert tracker.stats().refused == tracker.stats().spooled == 0


@given(fields=EVENTS)
def test_an_event_as_a_value_is_the_event_that_is_sent(fields: dict[str, object]):
    try:
        made = UsageEvent.model_validate(fields)
    except InvalidUsageError:
        assert python_refuses(fields) is not None
        return
    again = json.loads(to_wire(made.model_dump(), datetime.now(UTC)).payload)
    assert again == json.loads(
        to_wire(json.loads(made.model_dump_json()), datetime.now(UTC)).payload
    )


@given(payloads=st.lists(st.tuples(EVENTS, ANY_TEXT), min_size=1, max_size=5))
def test_what_comes_out_of_the_spool_is_what_went_in(tmp_path_factory, payloads):
    spool = Spool.create(tmp_path_factory.mktemp("spool"), 2**30)
    requests: list[EventRequest | RejectionRequest] = []
    for fields, reason in payloads:
        try:
            wire = to_wire(fields, datetime.now(UTC))
        except InvalidUsageError:
            requests.append(RejectionRequest(keepable(fields), reason))
        else:
            requests.append(EventRequest((wire.tenant_id, wire.idempotency_key), wire.payload))
    spool.append(requests)
    numbers, found = zip(*spool.oldest(100, 2**30), strict=True)
    assert [(type(one), one.order, one.payload) for one in found] == [
        (type(one), one.order, one.payload) for one in requests
    ]
    assert [getattr(one, "reason", None) for one in found] == [
        getattr(one, "reason", None) for one in requests
    ]
    spool.forget(numbers)
    spool.close()
    assert not spool.path.exists()


def test_ids_may_be_uuids_everywhere(running: tuple[UsageTracker, psycopg.Connection[tuple]]):
    tracker, connection = running
    some = UUID(int=9)
    assert tracker.track_token_usage_sync(some, 1, None, some, some, some) is True
    row = connection.execute("select tenant_id from token_tracking_raw.usage_events").fetchone()
    assert row == (str(some),)
