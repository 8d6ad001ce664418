"""The rules in Python; SQL must give the same verdicts, with the same text for one broken rule."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bad_events import BAD, EDGE, GOOD, WITHOUT_NUMBER, as_if_canonical
from tests.support.databases import Database
from tests.support.strategies import LIKELY
from token_tracking import (
    InvalidUsageError,
    Operation,
    UsageEvent,
    UsageTracker,
    make_idempotency_key,
)
from token_tracking.event import metadata as metadata_rules
from token_tracking.event import rules
from token_tracking.event.fields import EVENT_FIELDS
from token_tracking.event.kept import keepable
from token_tracking.event.keys import new_event_key
from token_tracking.event.rules import to_wire

NOW = datetime.now(UTC)


@pytest.mark.parametrize("name", [*BAD, *WITHOUT_NUMBER])
def test_python_refuses_what_sql_refuses_for_the_same_reason(emptied: Database, name: str):
    fields, field = (BAD | WITHOUT_NUMBER)[name]
    event = {**GOOD, "idempotency_key": "bad", **fields}
    with pytest.raises(InvalidUsageError) as caught:
        to_wire(event, datetime.now(UTC))
    assert caught.value.reason.startswith(f"{field}: ")
    refused = "select problems->0->>'reason' from token_tracking_raw.track_token_usage_batch("
    assert emptied.value(f"{refused}%s::json)", (json.dumps([event]),)) == caught.value.reason
    # In the form that Python sends, too, which has a quick way of its own.
    if all(value is not None for value in event.values()):
        canonical = f"[{as_if_canonical(event)}]"
        assert emptied.value(f"{refused}%s::json)", (canonical,)) == caught.value.reason


@pytest.mark.parametrize("name", EDGE)
def test_python_accepts_what_sql_accepts(emptied: Database, name: str):
    event = {**GOOD, "idempotency_key": "edge", **EDGE[name][0]}
    wire = to_wire(event, datetime.now(UTC))
    for text in (json.dumps([event]), f"[{wire.payload.decode()}]"):
        count = "select recorded + duplicates from token_tracking_raw.track_token_usage_batch(%s)"
        assert emptied.value(f"{count}".replace("%s", "%s::json"), (text,)) == 1
    # Both texts must give the same event in both ways: Python must not change the caller's meaning.
    assert emptied.value("select count(*) from token_tracking_raw.usage_events") == 1
    assert emptied.value("select count(*) from token_tracking_raw.usage_event_conflicts") == 0


def test_what_python_alone_can_say_is_refused_or_made_text():
    class Colour(Enum):
        RED = "red"

    nan = {"tenant_id": "a", "tokens": 1, "metadata": {"x": float("nan")}}
    with pytest.raises(InvalidUsageError, match="metadata: NaN or infinity; must be JSON values"):
        to_wire(nan, NOW)
    with pytest.raises(InvalidUsageError, match="metadata: a value of type object; must be JSON"):
        to_wire({"tenant_id": "a", "tokens": 1, "metadata": {"x": object()}}, NOW)
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(InvalidUsageError, match="metadata: more than 16384 bytes"):
        to_wire({"tenant_id": "a", "tokens": 1, "metadata": loop}, NOW)
    with pytest.raises(InvalidUsageError, match="occurred_at: a time without UTC offset"):
        to_wire({"tenant_id": "a", "tokens": 1, "occurred_at": datetime(2026, 1, 1)}, NOW)  # noqa: DTZ001
    with pytest.raises(InvalidUsageError, match="tokens: a value of type Decimal"):
        to_wire({"tenant_id": "a", "tokens": Decimal("NaN")}, NOW)
    identifier = UUID(int=7)
    wire = to_wire(
        {
            "tenant_id": identifier,
            "tokens": 1,
            "metadata": {
                "id": identifier,
                "at": NOW,
                "cost": Decimal("0.10"),
                "colour": Colour.RED,
                1: (2, 3),
            },
        },
        NOW,
    )
    sent = json.loads(wire.payload)
    assert sent["tenant_id"] == str(identifier)
    assert sent["metadata"] == {
        "id": str(identifier),
        "at": NOW.isoformat(),
        "cost": "0.10",
        "colour": "red",
        "1": [2, 3],
    }


def test_an_integer_like_number_counts():
    class Tokens:
        def __index__(self) -> int:
            return 5

        __int__ = __index__

    assert json.loads(to_wire({"tenant_id": "a", "tokens": Tokens()}, NOW).payload)["tokens"] == 5


def test_the_time_is_sent_in_utc():
    there = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    wire = to_wire({"tenant_id": "a", "tokens": 1, "occurred_at": there}, NOW)
    assert json.loads(wire.payload)["occurred_at"] == "2025-12-31T18:45:00+00:00"


def test_a_usage_event_sent_again_is_the_same_event():
    event = UsageEvent.model_validate({"tenant_id": UUID(int=1), "input_tokens": 3})
    assert (event.tenant_id, event.tokens) == (str(UUID(int=1)), 3)
    again = UsageEvent.model_validate(event.model_dump())
    assert again == event
    with pytest.raises(InvalidUsageError, match="tokens: a negative number"):
        UsageEvent.model_validate({"tenant_id": "a", "tokens": -1})
    with pytest.raises(InvalidUsageError, match="event: an array; must be an object"):
        UsageEvent.model_validate([])


USUAL = {**GOOD, "idempotency_key": "k", "model": "m", "agent_id": "a", "metadata": {}}


@settings(max_examples=1000)
@given(
    changes=LIKELY,
    metadata=st.dictionaries(
        st.text(max_size=70),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=110)),
            lambda inner: st.lists(inner, max_size=20),
            max_leaves=30,
        ),
        max_size=20,
    ),
)
def test_what_is_usual_is_what_all_rules_make_of_it(
    changes: dict[str, object], metadata: dict[str, object]
):
    def outcome() -> tuple[bytes, ...] | str:
        try:
            return (to_wire(event, NOW).payload,)
        except InvalidUsageError as error:
            return error.reason

    event = {**USUAL, "metadata": metadata, **changes}
    if event["idempotency_key"] is None:
        event["idempotency_key"] = "k"  # or else each call makes a new one
    quickly = outcome()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rules, "_usual_event", lambda *_: None)
        patched.setattr(metadata_rules, "_flat_text", lambda _: None)
        assert quickly == outcome()


def test_all_fields_are_read_where_they_are_written_out():
    """A new field that the fast path did not read would be dropped without a word."""
    read: list[str] = []

    class Fields(dict[str, object]):
        def get(self, field: str, default: object = None) -> object:
            read.append(field)
            return super().get(field, default)

    assert rules._usual_event(Fields(USUAL), NOW) is not None
    assert sorted(read) == sorted(EVENT_FIELDS)
    assert set(UsageEvent.model_fields) == set(EVENT_FIELDS)
    arguments = inspect.signature(UsageTracker.track_token_usage).parameters
    assert arguments.keys() - {"self"} == set(EVENT_FIELDS)


def test_what_a_service_sends_is_usual():
    metadata = {
        "collection_id": "c-17",
        "document_ids": ["d-1", "d-2"],
        "query_strategy": "hybrid",
        "execution_time_ms": 812.5,
        "cached": False,
        "parent": None,
    }
    event = {**USUAL, "metadata": metadata, "operation": Operation.CHAT, "occurred_at": None}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rules, "checked_text", None)
        patched.setattr(metadata_rules, "_Measure", None)
        assert json.loads(to_wire(event, NOW).payload)["metadata"] == metadata


@pytest.mark.parametrize(
    "value", [["x" * 100] * 16, [1e308] * 16, 1.5e300, "\u0001" * 100, ["\U0001f600" * 8] * 16]
)
def test_what_is_larger_in_postgresql_is_measured(emptied: Database, value: object):
    for number in range(1, 17):
        event = {**USUAL, "metadata": {f"{n}": value for n in range(number)}}
        size = emptied.value(
            "select octet_length(%s::jsonb::text)", (json.dumps(event["metadata"]),)
        )
        if size <= 16384:
            to_wire(event, NOW)
        else:
            with pytest.raises(InvalidUsageError, match="metadata: more than 16384 bytes"):
                to_wire(event, NOW)


def test_texts_of_odd_classes_count_by_their_characters():
    class Odd(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "another"

        def __format__(self, _: str) -> str:
            return '","tokens":9,"x":"'

    event = {name: Odd(text) if isinstance(text, str) else text for name, text in USUAL.items()}
    event["occurred_at"] = NOW
    assert to_wire(event, NOW).payload == to_wire({**USUAL, "occurred_at": NOW}, NOW).payload


def test_a_reason_never_shows_a_value():
    canary = "canary-7f3a"
    for fields in (
        {"tenant_id": canary * 100},
        {"tokens": canary},
        {"metadata": {canary: float("inf")}},
        {"metadata": {canary: object()}},
        {"occurred_at": canary},
        {"model": canary + "\0"},
        {"metadata": {canary: canary + "\ud800"}},
    ):
        with pytest.raises(InvalidUsageError) as caught:
            to_wire({"tenant_id": "a", "tokens": 1, **fields}, NOW)
        assert canary not in str(caught.value)


def test_whatever_is_refused_can_be_kept():
    loop: list[object] = []
    loop.append(loop)

    class Rude:
        def __str__(self) -> str:
            raise ValueError

    for payload in (loop, Rude(), {"a": {1, 2}}, float("nan"), 10**5000, "\ud800\0", b"\xff", None):
        json.loads(keepable(payload))
    assert json.loads(keepable({"tokens": -5, "model": "m"})) == {"tokens": -5, "model": "m"}


def test_keys_are_equal_exactly_if_their_parts_are():
    assert make_idempotency_key("a", 1) == make_idempotency_key("a", "1")
    assert make_idempotency_key("ab", "c") != make_idempotency_key("a", "bc")
    assert len({new_event_key() for _ in range(10_000)}) == 10_000
    key = UUID(new_event_key())
    assert (key.version, key.variant) == (7, "specified in RFC 4122")
    first = new_event_key()
    assert all(new_event_key()[:13] >= first[:13] for _ in range(1000))
