"""The rules for prices in Python; SQL must give the same verdicts, with the same texts."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import ROOT
from tests.support.databases import Database
from token_tracking.errors import InvalidPriceError
from token_tracking.pricing.rules import (
    CONTEXT_BOUNDS,
    FIELDS,
    TOKEN_KINDS,
    Subject,
    number_text,
    price_problem,
    to_wire,
)

FROM = "2026-03-01T00:00:00+00:00"
GOOD: dict[Subject, dict[str, object]] = {
    "model_prices": {
        "provider": "openai",
        "model": "gpt-4o",
        "token_kind": "input",
        "valid_from": FROM,
        "amount": Decimal("2.5"),
    },
    "model_aliases": {
        "alias": "gpt-4o-2024-08-06",
        "valid_from": FROM,
        "priced_provider": "openai",
        "priced_model": "gpt-4o",
    },
    "price_list_rules": {
        "price_list": "customer",
        "valid_from": FROM,
        "base_list": "list",
        "factor": Decimal("1.2"),
    },
    "tenant_price_lists": {"tenant_id": "acme", "valid_from": FROM, "price_list": "customer"},
}
PRICE, ALIAS, RULE = "model_prices", "model_aliases", "price_list_rules"
# What is changed in a good object (... removes a field), and the field that the reason names.
BAD: dict[str, tuple[Subject, dict[str, object], str]] = {
    "unknown field": (PRICE, {"price": 1, "zero": 2}, "zero"),
    "unknown field with a forged name": (PRICE, {"a\nb": 1}, "a field"),
    "no provider": (PRICE, {"provider": ...}, "provider"),
    "null provider": (PRICE, {"provider": None}, "provider"),
    "blank provider": (PRICE, {"provider": " \t\x0b"}, "provider"),
    "long provider": (PRICE, {"provider": "p" * 64}, "provider"),
    "empty model": (PRICE, {"model": ""}, "model"),
    "long model": (PRICE, {"model": "\N{GRINNING FACE}" * 256}, "model"),
    "model is a number": (PRICE, {"model": 4}, "model"),
    "model is an array": (PRICE, {"model": ["gpt"]}, "model"),
    "null list": (PRICE, {"price_list": None}, "price_list"),
    "no kind": (PRICE, {"token_kind": ...}, "token_kind"),
    "unknown kind": (PRICE, {"token_kind": "inputs"}, "token_kind"),
    "kind is true": (PRICE, {"token_kind": True}, "token_kind"),
    "size is text": (PRICE, {"context_over": "0"}, "context_over"),
    "negative size": (PRICE, {"context_over": -1}, "context_over"),
    "size with a fraction": (PRICE, {"context_over": Decimal("0.5")}, "context_over"),
    "size above the limit": (PRICE, {"context_over": 2**40 + 1}, "context_over"),
    "no time": (PRICE, {"valid_from": ...}, "valid_from"),
    "not a time": (PRICE, {"valid_from": "yesterday"}, "valid_from"),
    "a date alone": (PRICE, {"valid_from": "2026-03-01"}, "valid_from"),
    "a time without offset": (PRICE, {"valid_from": "2026-03-01T00:00"}, "valid_from"),
    "no such day": (PRICE, {"valid_from": "2026-02-30T00:00Z"}, "valid_from"),
    "a time within an hour": (PRICE, {"valid_from": "2026-03-01T00:30Z"}, "valid_from"),
    "a microsecond after an hour": (
        PRICE,
        {"valid_from": "2026-03-01T00:00:00.000001Z"},
        "valid_from",
    ),
    "an offset of half an hour": (PRICE, {"valid_from": "2026-03-01T00:00+05:30"}, "valid_from"),
    "the year 1999": (PRICE, {"valid_from": "1999-12-31T23:00Z"}, "valid_from"),
    "the year 10000": (PRICE, {"valid_from": "9999-12-31T23:00-05:00"}, "valid_from"),
    "the year 0": (PRICE, {"valid_from": "0000-01-01T00:00Z"}, "valid_from"),
    "time is a number": (PRICE, {"valid_from": 1767225600}, "valid_from"),
    "currency in lower case": (PRICE, {"currency": "usd"}, "currency"),
    "currency is a sign": (PRICE, {"currency": "$"}, "currency"),
    "no amount": (PRICE, {"amount": ...}, "amount"),
    "amount is text": (PRICE, {"amount": "2.5"}, "amount"),
    "negative amount": (PRICE, {"amount": Decimal("-0.000001")}, "amount"),
    "amount above the limit": (PRICE, {"amount": Decimal("1000000000.1")}, "amount"),
    "amount of 19 decimals": (PRICE, {"amount": Decimal("0.1000000000000000001")}, "amount"),
    "source is a number": (PRICE, {"source": 1}, "source"),
    "empty note": (PRICE, {"note": ""}, "note"),
    "long note": (PRICE, {"note": "n" * 1001}, "note"),
    "NUL": (PRICE, {"note": "a\0b", "model": "x"}, "note"),
    "half of a surrogate pair": (PRICE, {"model": "\ud800"}, "model"),
    "NUL in an unknown name": (PRICE, {"\0": 1}, "a field"),
    "a number of 200,000 digits": (PRICE, {"amount": Decimal("1e200000")}, "event"),
    "a number of 20,000 decimals": (PRICE, {"amount": Decimal("1e-20000")}, "event"),
    "no alias": (ALIAS, {"alias": ...}, "alias"),
    "no priced model": (ALIAS, {"priced_model": ...}, "priced_model"),
    "half an alias": (ALIAS, {"priced_model": None}, "priced_model"),
    "the other half": (ALIAS, {"priced_provider": None}, "priced_model"),
    "no list": (RULE, {"price_list": ...}, "price_list"),
    "a factor alone": (RULE, {"base_list": None}, "factor"),
    "a base alone": (RULE, {"factor": None}, "factor"),
    "negative factor": (RULE, {"factor": -1}, "factor"),
    "a list of itself": (RULE, {"base_list": "customer"}, "base_list"),
    "no tenant": ("tenant_price_lists", {"tenant_id": ...}, "tenant_id"),
    "list is an object": ("tenant_price_lists", {"price_list": {}}, "price_list"),
}
EDGE: dict[str, tuple[Subject, dict[str, object]]] = {
    "free": (PRICE, {"amount": 0}),
    "ended": (PRICE, {"amount": None}),
    "the highest price": (PRICE, {"amount": 1_000_000_000}),
    "18 decimals": (PRICE, {"amount": Decimal("0.123456789012345678")}),
    "zeros after 18 decimals": (PRICE, {"amount": Decimal("1.50000000000000000000")}),
    "with an exponent": (PRICE, {"amount": Decimal("1E+2")}),
    "an offset": (PRICE, {"valid_from": "2026-03-01 05:30:00.000000000+05:30"}),
    "the last hour": (PRICE, {"valid_from": "9999-12-31T23:00:00Z"}),
    "long texts": (PRICE, {"provider": "p" * 63, "model": "é" * 255, "note": "n" * 1000}),
    "no remarks": (PRICE, {"source": None, "note": None}),
    "an alias that ends": (ALIAS, {"priced_provider": None, "priced_model": None}),
    "a rule that ends": (RULE, {"base_list": None, "factor": None}),
    "a tenant's list that ends": ("tenant_price_lists", {"price_list": None}),
}
VERDICT = (
    "select coalesce(attempt.problem, token_tracking_raw.price_problem(%s, attempt.parsed))"
    " from token_tracking_raw.try_jsonb(%s::json) as attempt"
)


def changed(subject: Subject, fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in (GOOD[subject] | fields).items() if value is not ...}


def as_json(value: object) -> str:
    """Return a value as JSON, a Decimal with all of its digits."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(k)}:{as_json(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(as_json, value))}]"
    return json.dumps(value)


def sql_problem(database: Database, subject: Subject, element: object) -> object:
    return database.value(VERDICT, (subject, as_json(element)))


@pytest.mark.parametrize("name", BAD)
def test_python_refuses_what_sql_refuses_for_the_same_reason(emptied: Database, name: str):
    subject, fields, field = BAD[name]
    element = changed(subject, fields)
    reason = price_problem(subject, element)
    assert reason is not None
    assert reason.startswith(f"{field}: ")
    assert sql_problem(emptied, subject, element) == reason
    with pytest.raises(InvalidPriceError, match=f"^{field}: "):
        to_wire(subject, element)


@pytest.mark.parametrize("name", EDGE)
def test_python_accepts_what_sql_accepts(emptied: Database, name: str):
    subject, fields = EDGE[name]
    wire = to_wire(subject, changed(subject, fields))
    assert sql_problem(emptied, subject, json.loads(wire, parse_float=Decimal)) is None


@pytest.mark.parametrize("value", [None, True, 1, Decimal("0.5"), "x", "\0", [], [{}]])
@pytest.mark.parametrize("subject", FIELDS)
def test_no_object_is_refused_alike(emptied: Database, subject: Subject, value: object):
    reason = price_problem(subject, value)
    assert reason is not None
    assert sql_problem(emptied, subject, value) == reason


def test_both_have_the_same_table_of_fields(emptied: Database):
    for subject, fields in FIELDS.items():
        assert emptied.rows(
            "select field, kind, part, most, fallback, fallback is null"
            " from token_tracking_raw.price_fields(%s)",
            (subject,),
        ) == [
            (
                field.name,
                f"{field.kind} or null" if field.may_be_null else field.kind,
                field.part,
                field.most,
                field.default,
                field.is_required,
            )
            for field in fields
        ]
    assert emptied.value("select token_tracking_raw.token_kinds()") == list(TOKEN_KINDS)


def test_bounds_are_those_of_the_warehouse():
    project = yaml.safe_load((ROOT / "dbt_project.yml").read_text("utf-8"))
    assert list(CONTEXT_BOUNDS) == project["vars"]["context_bounds"]


NUMBERS = st.one_of(
    st.integers(-2, 2**41),
    st.decimals(-1, 10**10, allow_nan=False).map(lambda number: number.normalize()),
    st.floats(allow_nan=False, allow_infinity=False),
)
TIMES = st.one_of(
    st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    st.builds(
        lambda hour, offset: f"{hour:%Y-%m-%dT%H}:00{offset}",
        st.datetimes(datetime(1990, 1, 1)),  # noqa: DTZ001
        st.sampled_from(["Z", "+00:00", "+05", "-09:30", "+0545", "", "+16:00"]),
    ),
)
TEXTS = st.one_of(
    st.text(max_size=3),
    st.sampled_from(["USD", "list", "\0", " ", "openai", *TOKEN_KINDS]),
    st.integers(60, 260).map(lambda size: "x" * size),
    TIMES,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=3,
)


@st.composite
def objects(draw: st.DrawFn) -> tuple[Subject, dict[str, object]]:
    """A good object with a few fields changed, most of them to values of their kind."""
    subject = draw(st.sampled_from(sorted(FIELDS)))
    element = dict(GOOD[subject])
    names = [*[field.name for field in FIELDS[subject]], "unknown", "\0", "a b"]
    likely = {"valid_from": TIMES, "amount": NUMBERS, "context_over": NUMBERS, "factor": NUMBERS}
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        element[name] = draw(st.one_of(likely.get(name, TEXTS), VALUES))
    for name in draw(st.lists(st.sampled_from(names), max_size=1)):
        element.pop(name, None)
    return subject, element


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # nothing is written
)
@given(st.lists(objects(), min_size=20, max_size=60))
def test_python_and_sql_agree(emptied: Database, drawn: list[tuple[Subject, dict[str, object]]]):
    with closing(emptied.connect()) as connection:
        for subject, element in drawn:
            found = connection.execute(VERDICT, (subject, as_json(element))).fetchone()
            assert found == (price_problem(subject, element),), (subject, as_json(element))


@given(st.decimals(0, 10**9, allow_nan=False, places=18))
def test_numbers_keep_their_digits(number: Decimal):
    assert Decimal(number_text(number)) == number
    wire = to_wire("model_prices", {**GOOD["model_prices"], "amount": number})
    assert json.loads(wire, parse_float=Decimal, parse_int=Decimal)["amount"] == number


def test_times_go_out_in_utc():
    zone = timezone(timedelta(hours=2))
    wire = to_wire(PRICE, GOOD[PRICE] | {"valid_from": datetime(2026, 3, 1, 2, tzinfo=zone)})
    assert json.loads(wire)["valid_from"] == "2026-03-01T00:00:00+00:00"
    for bad in (datetime(2026, 3, 1), datetime(2026, 3, 1, 0, 0, 1, tzinfo=UTC)):  # noqa: DTZ001
        with pytest.raises(InvalidPriceError, match="valid_from: a time w"):
            to_wire(PRICE, GOOD[PRICE] | {"valid_from": bad})
