"""Whatever counts a response of a known form has, its usage keeps the rules of an event."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.responses import FORMS
from token_tracking import UsageNotFoundError, usage_of
from token_tracking.event.fields import MAX_TOKENS

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
COUNTS = st.integers(0, 100) | st.integers(0, MAX_TOKENS)


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
    counts = usage[5:12]
    assert all(
        count is None or (type(count) is int and 0 <= count <= MAX_TOKENS) for count in counts
    )
    tokens, given_tokens, made, read, written, long, reasoning = counts
    assert (given_tokens or 0) + (made or 0) <= tokens
    assert (read or 0) + (written or 0) <= (given_tokens or 0)
    assert (long or 0) <= (written or 0)
    assert (reasoning or 0) <= (made or 0)
    # A part needs its whole.
    assert given_tokens is not None or (read is None and written is None)
    assert written is not None or long is None
    assert made is not None or reasoning is None
    # Less than everything is told.
    assert (given_tokens is not None and made is not None) or usage.note is not None


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_counts_keep_the_rules(name: str, data: st.DataObject):
    response = deepcopy(FORMS[name].response)
    for holder, place in numbers(response):
        holder[place] = data.draw(COUNTS)
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


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        ODD,
        lambda inner: st.dictionaries(
            st.sampled_from(
                [
                    "usage",
                    "usage_metadata",
                    "meta",
                    "response",
                    "delta",
                    "x_groq",
                    "input_tokens",
                    "prompt_tokens",
                    "inputTokens",
                    "iterations",
                    "cache_creation",
                    "tokens",
                    "type",
                    "billed_units",
                    "prompt_tokens_details",
                    "id",
                    "model",
                    "service_tier",
                ]
            ),
            inner | st.lists(inner, max_size=2),
        ),
        max_leaves=12,
    )
)
def test_a_dictionary_of_any_shape_is_read_or_refused(response: object):
    keeps_the_rules(response)
