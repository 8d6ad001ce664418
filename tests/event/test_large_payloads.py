"""Arguments of any size: the event loop is not blocked, and what is kept is small."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import pytest

from tests.support.bad_events import GOOD
from tests.support.databases import Database
from tests.support.waiting import ended
from token_tracking import InvalidUsageError, UsageEvent, UsageTracker
from token_tracking.event.kept import MAX_KEPT_BYTES, keepable
from token_tracking.event.metadata import MAX_METADATA_BYTES
from token_tracking.event.rules import to_wire

KEPT = "select payload::text, reason from token_tracking_raw.usage_event_rejections"
EVENTS_KEPT = (
    "select metadata::text from token_tracking_raw.usage_events where idempotency_key = 'k'"
)
TOO_LARGE = "metadata: more than 16384 bytes of JSON text; must be at most 16384 bytes"
TOO_DEEP = "metadata: nested more than 8 deep; must be at most 8 deep"
TOO_HUGE = "metadata: a number beyond 1.8e308; must be JSON values that any language can read"


class Liar(Mapping):
    """Claims to be empty, and never ends."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[str]:
        return (f"name-{number}" for number in itertools.count())

    def __getitem__(self, name: str) -> str:
        return "x"


class Again(Liar):
    """Repeats the same name endlessly."""

    def __iter__(self) -> Iterator[str]:
        return itertools.repeat("tenant_id")


class EndlessItems(dict):
    def items(self):
        return ((f"name-{number}", number) for number in itertools.count())


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def itself() -> dict[str, object]:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    return loop


MOST_SECONDS = 0.005
TEXT = "x" * 50_000_000
LARGE: dict[str, Callable[[], dict[str, object]]] = {
    "text of 50 MB": lambda: {"metadata": {"text": TEXT}},
    "a name of 50 MB": lambda: {"metadata": {TEXT: 1}},
    "a million short texts": lambda: {"metadata": {"ids": ["0123456789abcdef"] * 10**6}},
    "a million small numbers": lambda: {"metadata": {"ids": [1] * 10**6}},
    "a million names": lambda: {"metadata": {f"{n}": n for n in range(10**6)}},
    "a huge integer": lambda: {"metadata": {"n": 1 << 50_000_000}},
    "100,000 deep": lambda: {"metadata": {"n": nested(100_000)}},
    "itself": lambda: {"metadata": itself()},
    "a mapping whose length lies": lambda: {"metadata": Liar()},
    "a mapping without end inside": lambda: {"metadata": {"a": {"b": Again()}}},
    "a dictionary without end": lambda: {"metadata": EndlessItems(a=1)},
    "a generator without end": lambda: {"metadata": {"a": itertools.count()}},
    "a range without end": lambda: {"metadata": {"a": range(10**12)}},
    "a tenant of 50 MB": lambda: {"tenant_id": TEXT},
    "a key of 50 MB": lambda: {"idempotency_key": TEXT},
    "an operation of 50 MB": lambda: {"operation": TEXT},
    "a time of 50 MB": lambda: {"occurred_at": TEXT},
    "tokens of 50 million bits": lambda: {"tokens": 1 << 50_000_000},
    "bytes": lambda: {"metadata": {"a": TEXT.encode()}},
    "many refused values": lambda: {"tokens": [1] * 10**6},
}


@pytest.mark.timed
@pytest.mark.parametrize("name", LARGE)
def test_no_payload_holds_the_loop(emptied: Database, name: str):
    """Large metadata is truncated; any other value that is too large is refused and kept."""
    large = LARGE[name]()
    given = {"tenant_id": "a", "tokens": 1, "idempotency_key": "k", **large}
    is_kept = "metadata" in large

    async def call(tracker: UsageTracker) -> float:
        # The processor time of this thread only: others may use the processor meanwhile.
        started = time.thread_time()
        task = asyncio.ensure_future(tracker.track_token_usage(**given))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        held = time.thread_time() - started
        assert await task is is_kept
        return held

    with UsageTracker(dsn=emptied.url) as tracker:
        gc.disable()
        try:
            # A processor that others share can be slow for a while, and so a few attempts.
            attempts = [asyncio.run(call(tracker))]
            while min(attempts) >= MOST_SECONDS and len(attempts) < 20:
                attempts.append(asyncio.run(call(tracker)))
        finally:
            gc.enable()
        stats = tracker.stats()
        ended_so = stats.recorded + stats.duplicate if is_kept else stats.rejected
        assert ended_so == len(attempts)
        assert tracker.track_token_usage_sync("a", 1) is True
    assert min(attempts) < MOST_SECONDS
    sizes = emptied.rows(EVENTS_KEPT if is_kept else KEPT)
    assert len(sizes) == 1
    assert len(sizes[0][0]) <= (MAX_METADATA_BYTES if is_kept else MAX_KEPT_BYTES)


def test_events_whose_fields_have_no_end_are_refused(emptied: Database):
    with UsageTracker(dsn=emptied.url) as tracker:
        # The second one ends up as an event of one field, and without tokens.
        good = {"tenant_id": "a", "tokens": 1}
        told = tracker.track_many_sync([Liar(), Again(), EndlessItems(good), good])
        assert told == [False, True, True, True]
        assert ended(tracker.stats()) == 4
    with pytest.raises(InvalidUsageError, match="name-0: unknown field"):
        UsageEvent.model_validate(Liar())
    assert all(len(payload) <= MAX_KEPT_BYTES for payload, _ in emptied.rows(KEPT))


def refusal(event: dict[str, object]) -> str | None:
    try:
        to_wire(event, datetime.now(UTC))
    except InvalidUsageError as error:
        return error.reason
    return None


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": "x" * (16384 - 9)}, None),
        ({"a": "x" * (16384 - 8)}, TOO_LARGE),
        ({"a": "\n" * 8183, "": ""}, None),
        ({"a": "\n" * 8184, "": ""}, TOO_LARGE),
        ({"a": ["é"] * 2728 + [1234, 1]}, None),
        ({"a": ["é"] * 2728 + [1234, 12]}, TOO_LARGE),
        ({"a": [1e300] * 54}, None),
        ({"a": [1e300] * 55}, TOO_LARGE),
        ({"a": [-1e-300] * 53}, None),
        ({"a": [-1e-300] * 54}, TOO_LARGE),
        ({"a": [-0.0] * 3275}, None),
        ({"a": [-0.0] * 3276}, TOO_LARGE),
        ({"a": [[], {}, None, True, False] * 606}, None),
        ({"a": [[], {}, None, True, False] * 607}, TOO_LARGE),
        ({f"{n:04}": n for n in range(1000, 2170)}, None),
        ({f"{n:04}": n for n in range(1000, 2171)}, TOO_LARGE),
        ({"a": nested(7)}, None),
        ({"a": nested(8)}, TOO_DEEP),
        ({"a": nested(800), "b": "x" * 14000}, TOO_DEEP),
        ({"a": nested(800), "b": "x" * 16000}, TOO_LARGE),
        ({"a": 10**308}, None),
        ({"a": -(10**309)}, TOO_HUGE),
        ({"a": [10**309], "b": nested(8)}, TOO_DEEP),
        ({"a": 10**4000, "b": "x" * 16000}, TOO_LARGE),
    ],
    ids=str,
)
def test_both_sides_draw_the_same_line(
    emptied: Database, metadata: dict[str, object], reason: str | None
):
    event = {**GOOD, "idempotency_key": "k", "metadata": metadata}
    assert refusal(event) == reason
    batch = "select problems->0->>'reason' from token_tracking_raw.track_token_usage_batch(%s)"
    for text in (
        json.dumps([event]),
        json.dumps([event], ensure_ascii=False, separators=(",", ":")),
    ):
        assert emptied.value(batch.replace("%s", "%s::json"), (text,)) == reason


FIELDS = {f"field-{number}": number for number in range(10_000)}


@pytest.mark.parametrize(
    ("payload", "whole"),
    [
        ({"tenant_id": "a", "idempotency_key": "k", "tokens": -1, "x": "y" * 60_000}, True),
        ({"x": '\\"\0\ud800' * 40_000, "tenant_id": "a", "idempotency_key": "k"}, False),
        ({**FIELDS, "tenant_id": "a", "idempotency_key": "k"}, False),
        ({"n" * 100_000: "é" * 100_000, "tenant_id": "a", "idempotency_key": "k"}, False),
        ([["x"] * 100_000], False),
    ],
    ids=["60 kB", "one long text", "many fields", "a long name", "no object"],
)
def test_what_is_kept_is_cut_alike_on_both_sides(
    each_emptied: Database, payload: object, whole: bool
):
    """A truncated payload keeps the fields that identify it, and a mark of the truncation."""
    in_python = keepable(payload)
    for sent in (in_python.decode(), json.dumps(payload)):
        each_emptied.rows("select token_tracking_raw.reject_usage_event(%s::json, 'why')", (sent,))
    kept = [text for text, _ in each_emptied.rows(KEPT)]
    assert all(len(text.encode()) <= MAX_KEPT_BYTES for text in kept)
    for text in (in_python.decode(), *kept):
        found = json.loads(text)
        assert ("cut" in found) is not whole
        if isinstance(payload, dict):
            assert (found["tenant_id"], found["idempotency_key"]) == ("a", "k")
        else:
            assert found["payload"].startswith('[["x", "x"')
    assert len(kept) == (1 if whole else 2)
    if whole:
        assert json.loads(kept[0]) == payload
    # Each can be read as jsonb.
    each_emptied.rows("select payload::jsonb from token_tracking_raw.usage_event_rejections")
