"""Metadata is in no total, so no value of it may cause a refusal; nor may a number's type."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.support.bad_events import BAD, GOOD
from tests.support.databases import Database
from tests.support.strategies import JSON, PYTHON_VALUES
from token_tracking import InvalidUsageError, UsageEvent, UsageTracker
from token_tracking.event import mended_metadata
from token_tracking.event.metadata import MAX_METADATA_BYTES
from token_tracking.event.rules import to_wire

NOW = datetime.now(UTC)
KEPT = "select metadata from token_tracking_raw.usage_events where idempotency_key = 'k'"


class Colour(Enum):
    RED = "red"


@dataclass
class Span:
    name: str
    parents: set[int]


class Usage(BaseModel):
    total: int
    cost: Decimal


class Opaque:
    pass


def itself() -> dict[str, object]:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    return loop


VALUES: dict[str, tuple[object, object]] = {
    "numpy's integer": (np.int64(812), 812),
    "numpy's float": (np.float32(0.5), 0.5),
    "numpy's boolean": (np.bool_(1), True),
    "numpy's array": (np.arange(3), "a value of type ndarray"),
    "a set": ({7}, [7]),
    "bytes": (b"a\xff", "a\\xff"),
    "a duration": (timedelta(milliseconds=812), "0:00:00.812000"),
    "NaN": (float("nan"), "NaN"),
    "infinity": ([float("-inf")], ["-Infinity"]),
    "a fraction": (Fraction(1, 3), "1/3"),
    "a path": (PurePosixPath("/a"), "/a"),
    "an error": (ValueError("why"), "why"),
    "a class": (Opaque, "Opaque"),
    "any object": (Opaque(), "a value of type Opaque"),
    "a member of an enum": ({1: {Colour.RED}}, {"1": ["red"]}),
    "a dataclass": (Span("s", {7}), {"name": "s", "parents": [7]}),
    "a model": (Usage(total=7, cost=Decimal("0.10")), {"total": 7, "cost": "0.10"}),
    "mappings": (UserDict({"a": OrderedDict(b={7})}), {"a": {"b": [7]}}),
    "names": (
        {np.int64(7): {7}, b"b": None, date(2026, 1, 2): 1},
        {"7": [7], "b": None, "2026-01-02": 1},
    ),
    "NUL and half a pair": ({"\0": "\ud800"}, {"\\u0000": "\\ud800"}),
    "a number beyond all": (10**310, str(10**310)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_json_has_not_is_kept_as_text(emptied: Database, name: str):
    value, kept = VALUES[name]
    with UsageTracker(dsn=emptied.url) as tracker:
        metadata = {"op": "op-1", "value": value}
        call = tracker.track_token_usage_sync
        assert call("a", 5, metadata=metadata, idempotency_key="k") is True
        assert tracker.track_many_sync([{"tenant_id": "a", "tokens": 5, "metadata": metadata}]) == [
            True
        ]
    assert emptied.value(KEPT) == {"op": "op-1", "value": kept}
    assert metadata == {"op": "op-1", "value": value} or name == "numpy's array"


@pytest.mark.parametrize("name", [name for name, (_, field) in BAD.items() if field == "metadata"])
def test_metadata_that_breaks_a_rule_costs_no_event(
    emptied: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Files and SQL refuse the event; a call's event is kept, which is logged once."""
    monkeypatch.setattr("token_tracking.client.calls._changed", set())
    event = {**GOOD, **BAD[name][0]}
    with UsageTracker(dsn=emptied.url) as tracker:
        for _ in range(3):
            assert tracker.track_token_usage_sync(**event) is True
        assert tracker.stats().recorded == 3
    told = [one for one in caplog.records if "metadata changed" in one.getMessage()]
    assert [one.levelno for one in told] == [logging.WARNING]
    with pytest.raises(InvalidUsageError, match="metadata: "):
        to_wire(event, NOW)


def test_of_large_metadata_the_beginning_of_each_value_is_kept(emptied: Database):
    metadata = {"prompt": "é" * 10**6, "op": "op-1", "ids": list(range(10**5)), "last": 7}
    with UsageTracker(dsn=emptied.url) as tracker:
        call = tracker.track_token_usage_sync
        assert call("a", 5, metadata=metadata, idempotency_key="k") is True
    kept = emptied.value(KEPT)
    assert isinstance(kept, dict)
    assert kept["prompt"].startswith("é" * 200)
    assert kept["prompt"].endswith(" ...")
    assert kept["ids"][:100] == list(range(100))
    assert (kept["op"], kept["last"]) == ("op-1", 7)
    assert kept["abridged"] == "more than 16384 bytes: the beginning of each value"


@given(metadata=st.one_of(PYTHON_VALUES, st.dictionaries(st.text(), PYTHON_VALUES), JSON))
def test_any_metadata_is_kept_by_the_rules(metadata: object):
    event, why = mended_metadata.event_of({**GOOD, "metadata": metadata}, NOW)
    kept = json.loads(event.payload)["metadata"]
    assert to_wire({**GOOD, "idempotency_key": "k", "metadata": kept}, NOW)
    assert len(json.dumps(kept, ensure_ascii=False).encode()) <= MAX_METADATA_BYTES
    assert kept != {"abridged": "nothing of it could be kept"}
    if why is None and metadata is not None:
        assert json.loads(to_wire({**GOOD, "metadata": metadata}, NOW).payload)["metadata"] == kept


def test_what_breaks_no_rule_is_sent_as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mended_metadata, "_mended", None)
    event, why = mended_metadata.event_of({**GOOD, "metadata": {"a": [1, "b", None, 0.5]}}, NOW)
    assert json.loads(event.payload)["metadata"] == {"a": [1, "b", None, 0.5]}
    assert why is None


def test_an_event_as_a_value_keeps_such_metadata_too():
    made = UsageEvent(tenant_id="a", tokens=5, metadata={"latency": np.int64(812)})  # type: ignore[dict-item]
    assert made.metadata == {"latency": 812}
    with pytest.raises(InvalidUsageError, match="tokens: a negative number"):
        UsageEvent(tenant_id="a", tokens=-5, metadata={"latency": {1}})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "tokens",
    [Decimal(5), Decimal("5.00"), Fraction(10, 2), np.int64(5), np.uint8(5), np.float32(5), 5.0],
    ids=repr,
)
def test_an_integral_number_of_any_type_is_an_integer(tokens: object):
    sent = json.loads(to_wire({**GOOD, "tokens": None, "input_tokens": tokens}, NOW).payload)
    assert (sent["tokens"], type(sent["tokens"])) == (5, int)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (Decimal("5.5"), "a number with a fraction"),
        (Fraction(1, 3), "a number with a fraction"),
        (np.float64(5.5), "a number with a fraction"),
        (Decimal("1e999999"), "a number above the limit"),
        (Decimal(-1), "a negative number"),
        (Decimal("sNaN"), "a value of type Decimal"),
        (np.float32("inf"), "a value of type float32"),
        (np.bool_(1), "a value of type bool"),
    ],
    ids=repr,
)
def test_any_other_number_stays_refused(tokens: object, why: str):
    with pytest.raises(InvalidUsageError, match=f"tokens: {why}"):
        to_wire({**GOOD, "tokens": tokens}, NOW)


def test_ids_are_text_or_uuids_and_nothing_else():
    """Ids say what an event belongs to, so they are never guessed."""
    for field in ("tenant_id", "agent_id", "conversation_id", "collection_id"):
        with pytest.raises(InvalidUsageError, match=f"{field}: a number; must be text"):
            mended_metadata.event_of({**GOOD, field: 7}, NOW)
