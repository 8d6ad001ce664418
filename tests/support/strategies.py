"""Hypothesis strategies: text, numbers, JSON, times, events."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.bad_events import GOOD
from tests.support.lengths import SOAK_SECONDS
from token_tracking.event.fields import EVENT_FIELDS

settings.register_profile(
    "ours",
    max_examples=3000 if SOAK_SECONDS else 150,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

settings.load_profile("ours")

# Lone surrogates and NUL, too.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)

TEXT = st.one_of(
    ANY_TEXT,
    st.sampled_from(["", " ", "llm", "LLM ", "acme", "x" * 255, "x" * 256, "é" * 255, "\\u0000"]),
)

NUMBERS = st.one_of(
    st.integers(-5, 2**41),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, 2**40, 2**40 + 1, 2**63, 2**70, True, False, 1e300, 5e-324, -0.0]),
)

JSON = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=25,
)

TIMES = st.one_of(
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())).map(datetime.isoformat),
    st.datetimes(datetime(2000, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
        datetime.isoformat
    ),
    st.from_regex(
        r"\A(19|20)[0-9]{2}-[0-3][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]"
        r"(:[0-6][0-9]([.,][0-9]{0,9})?)?(Z|z|[+-][01][0-9](:?[0-6][0-9])?)?\Z"
    ),
    st.sampled_from(["now", "infinity", "epoch", "today", "2026-01-02", "24:00"]),
    TEXT,
)

VALUES = {
    "tenant_id": TEXT,
    "idempotency_key": TEXT,
    "tokens": NUMBERS,
    "input_tokens": NUMBERS,
    "output_tokens": NUMBERS,
    "cache_read_tokens": NUMBERS,
    "cache_write_tokens": NUMBERS,
    "cache_write_long_tokens": NUMBERS,
    "reasoning_tokens": NUMBERS,
    "metadata": st.dictionaries(ANY_TEXT, JSON, max_size=5),
    "occurred_at": TIMES,
}

# Parts with their wholes, often just within them or just beyond.
_FEW = st.one_of(st.none(), st.integers(-1, 6), st.sampled_from([2.0, 2**40]))
_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "tokens": _FEW,
        "input_tokens": _FEW,
        "output_tokens": _FEW,
        "cache_read_tokens": _FEW,
        "cache_write_tokens": _FEW,
        "cache_write_long_tokens": _FEW,
        "reasoning_tokens": _FEW,
    },
).map(lambda parts: {**GOOD, **parts})

# A valid event with arbitrary values in one or two fields, so that each rule is tested.
LIKELY = _PARTS | st.lists(
    st.sampled_from(EVENT_FIELDS).flatmap(
        lambda field: st.tuples(st.just(field), st.one_of(VALUES.get(field, TEXT), JSON))
    ),
    max_size=2,
).map(lambda changes: {**GOOD, **dict(changes)})

PYTHON_VALUES = st.one_of(
    JSON,
    st.floats(),
    st.binary(max_size=10),
    st.decimals(),
    st.uuids(),
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
    st.sets(st.integers(), max_size=3),
    st.builds(object),
    st.dictionaries(st.one_of(st.none(), st.integers(), st.floats(), st.uuids()), JSON, max_size=2),
)
