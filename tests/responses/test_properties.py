"""Whatever counts a response of a known form has, its usage keeps the rules of an event."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.responses.test_usage_of import FAULTS
from tests.support.responses import FORMS
from token_tracking import UsageNotFoundError, usage_of
from token_tracking.event.fields import EVENT_FIELDS, MAX_TOKENS
from token_tracking.event.keys import make_idempotency_key
from token_tracking.event.rules import to_wire

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ODD = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(),
    st.just(2**70),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
COUNTS = st.integers(0, 3) | st.integers(0, 100) | st.integers(0, MAX_TOKENS)
CASES = {**FORMS, **FAULTS}


def numbers(response: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Return where the response has numbers: (holder, name or index)."""
    found = [] if found is None else found
    items = response.items() if isinstance(response, dict) else enumerate(response)
    for name, value in items:
        if isinstance(value, dict | list):
            numbers(value, found)
        elif isinstance(value, int | float):
            found.append((response, name))
    return found


def keeps_the_rules(response: object) -> None:
    try:
        usage = usage_of(response)
    except UsageNotFoundError:
        return
    fields = {name: value for name, value in usage._asdict().items() if name in EVENT_FIELDS}
    metadata = {"usage_note": usage.note}
    event = to_wire({**fields, "tenant_id": "t", "operation": "chat", "metadata": metadata}, NOW)
    # The event holds them as they are: nothing was mended.
    assert (
        json.loads(event.payload).items()
        >= {name: value for name, value in fields.items() if value is not None}.items()
    )
    make_idempotency_key(usage.provider, usage.response_id)
    assert usage.tokens <= MAX_TOKENS
    # Less than everything is told.
    is_split = usage.input_tokens is not None and usage.output_tokens is not None
    assert is_split or usage.note is not None
    if is_split:
        assert usage.tokens == usage[6] + usage[7]


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_counts_keep_the_rules(name: str, data: st.DataObject):
    response = deepcopy(FORMS[name].response)
    for holder, place in numbers(response):
        holder[place] = data.draw(COUNTS)
    keeps_the_rules(response)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_any_few_tokens_keep_the_rules(name: str, data: st.DataObject):
    """Few, so that wholes and parts are often equal; and some are not told."""
    response = deepcopy(CASES[name].response)
    for holder, place in numbers(response):
        holder[place] = data.draw(st.sampled_from([0, 1, 2, 3, None]))
    keeps_the_rules(response)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_odd_values_never_raise_another_error(name: str, data: st.DataObject):
    response = deepcopy(FORMS[name].response)
    for holder, place in numbers(response):
        if data.draw(st.booleans()):
            holder[place] = data.draw(ODD)
        elif isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[place]
    keeps_the_rules(response)


def members(response: Any) -> set[str]:
    """Return the names of all members, at any depth."""
    if isinstance(response, dict):
        return set(response).union(*map(members, response.values()))
    return set().union(*map(members, response)) if isinstance(response, list) else set()


NAMES = st.sampled_from(sorted(set().union(*[members(case.response) for case in CASES.values()])))


@settings(max_examples=500, deadline=None)
@given(
    st.recursive(
        ODD | st.integers(0, 9),
        lambda inner: (
            st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=6)
            | st.fixed_dictionaries({"usage": st.dictionaries(NAMES, inner, max_size=8)})
            | st.lists(inner, max_size=2)
        ),
        max_leaves=16,
    )
)
def test_a_dictionary_of_any_shape_is_read_or_refused(response: object):
    keeps_the_rules(response)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.text() | ODD, st.text() | ODD, st.data())
def test_any_texts_keep_the_rules(name: str, text: Any, other: Any, data: st.DataObject):
    response = deepcopy(FORMS[name].response)
    for place in [place for place, value in response.items() if isinstance(value, str)]:
        response[place] = data.draw(st.sampled_from([text, other, response[place]]))
    keeps_the_rules(response)
