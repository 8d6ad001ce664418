"""The rules for rows of the four tables of prices, and their wire format; imports no driver.

The procedure `price_problem` gives the same verdicts with the same texts, from the same table of
fields, `price_fields`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from ..errors import InvalidPriceError
from ..event.fields import EARLIEST, MAX_TOKENS
from ..event.rules import canonical_time
from ..event.values import kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Subject = Literal["model_prices", "model_aliases", "price_list_rules", "tenant_price_lists"]
Kind = Literal["text", "label", "token kind", "tokens", "hour", "currency", "price"]

TOKEN_KINDS: Final = (
    *("input", "cache_read", "cache_write", "cache_write_long", "output", "reasoning", "unsplit"),
)
PUBLIC_LIST: Final = "list"
STANDARD_TIER: Final = "standard"
UNKNOWN_PROVIDER: Final = "unknown"
MAX_PRICE: Final = 1_000_000_000
MOST_DECIMALS: Final = 18
# The sizes of a request that prices may begin above: dbt's variable context_bounds.
CONTEXT_BOUNDS: Final = (
    *(32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288),
)


class PriceField(NamedTuple):
    """One field of a table of prices.

    `part` is "key", "value" (which a further revision corrects) or "remark" (not compared). `most`
    is the maximum length of a text. A field without default is required.
    """

    name: str
    kind: Kind
    part: Literal["key", "value", "remark"]
    most: int | None = None
    default: str | int | None = None
    may_be_null: bool = False

    @property
    def is_required(self) -> bool:
        """Return whether an object must have the field."""
        return self.default is None and self.part != "remark"

    @property
    def rule(self) -> str:
        """Return what the field must be."""
        if self.most is not None:
            rule = f"must be text of 1 to {self.most} characters"
        else:
            rule = _RULES[self.kind]
        return f"{rule}, or null" if self.may_be_null else rule


_RULES: Final[dict[Kind, str]] = {
    "token kind": f"must be one of {', '.join(TOKEN_KINDS)}",
    "tokens": f"must be an integer from 0 to {MAX_TOKENS}",
    "currency": "must be a code of ISO 4217, such as USD",
    "hour": "must be a whole hour of UTC, as ISO 8601 text with a UTC offset",
    "price": f"must be a number from 0 to {MAX_PRICE}",
}
_REMARKS: Final = (
    PriceField("source", "text", "remark", 255, may_be_null=True),
    PriceField("note", "text", "remark", 1000, may_be_null=True),
)
_VALID_FROM: Final = PriceField("valid_from", "hour", "key")
FIELDS: Final[dict[Subject, tuple[PriceField, ...]]] = {
    "model_prices": (
        PriceField("price_list", "text", "key", 63, PUBLIC_LIST),
        PriceField("provider", "label", "key", 63),
        PriceField("model", "text", "key", 255),
        PriceField("token_kind", "token kind", "key"),
        PriceField("service_tier", "label", "key", 63, STANDARD_TIER),
        PriceField("context_over", "tokens", "key", default=0),
        _VALID_FROM,
        PriceField("currency", "currency", "value", default="USD"),
        PriceField("amount", "price", "value", may_be_null=True),
        *_REMARKS,
    ),
    "model_aliases": (
        PriceField("provider", "label", "key", 63, UNKNOWN_PROVIDER),
        PriceField("alias", "text", "key", 255),
        _VALID_FROM,
        PriceField("priced_provider", "label", "value", 63, may_be_null=True),
        PriceField("priced_model", "text", "value", 255, may_be_null=True),
        *_REMARKS,
    ),
    "price_list_rules": (
        PriceField("price_list", "text", "key", 63),
        _VALID_FROM,
        PriceField("base_list", "text", "value", 63, may_be_null=True),
        PriceField("factor", "price", "value", may_be_null=True),
        *_REMARKS,
    ),
    "tenant_price_lists": (
        PriceField("tenant_id", "text", "key", 255),
        _VALID_FROM,
        PriceField("price_list", "text", "value", 63, may_be_null=True),
        *_REMARKS,
    ),
}

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
    r"(?P<offset>Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?"
)
_UNHOLDABLE: Final = (
    "text with NUL or half of a surrogate pair; must be text that PostgreSQL can hold"
)
_MARK: Final = "\uffff"
# The limits of PostgreSQL's type numeric.
_MOST_DIGITS: Final = 131_072
_MOST_SCALE: Final = 16_383


def price_problem(subject: Subject, element: object) -> str | None:
    """Return why an object is refused, as '<field>: <finding>; <rule>' without any value, or None.

    `element` is a JSON value: numbers as int, Decimal or float, and times as text or datetime.
    """
    if problem := _holding_problem(element):
        return problem
    if not isinstance(element, Mapping):
        return f"{subject}: {_kind_of(element)}; must be an object"
    given = cast("Mapping[str, object]", element)
    fields = FIELDS[subject]
    known = {field.name for field in fields}
    unknown = [name for name in given if name not in known]
    if unknown:
        first = min(unknown, key=_place_in_jsonb)
        shown = first if _NAME.fullmatch(first) else "a field"
        names = ", ".join(field.name for field in fields)
        return f"{shown}: unknown field; {subject} have only {names}"
    for field in fields:
        if field.name not in given:
            if field.is_required:
                return f"{field.name}: missing; {field.rule}"
        elif problem := _field_problem(field, given[field.name]):
            return problem
    return _pair_problem(subject, given)


def _field_problem(field: PriceField, value: object) -> str | None:
    if value is None:
        return None if field.may_be_null else f"{field.name}: null; {field.rule}"
    if field.kind in {"tokens", "price"}:
        found = _number_problem(field, value)
    elif isinstance(value, datetime) and field.kind == "hour":
        return _instant_problem(field, value)
    elif not isinstance(value, str):
        found = _kind_of(value)
    elif field.most is not None:
        found = _text_problem(field, value)
    elif field.kind == "hour":
        return _hour_problem(field, value)
    elif field.kind == "token kind":
        found = None if value in TOKEN_KINDS else "another text"
    else:
        found = None if _CURRENCY.fullmatch(value) else "another text"
    if found is None and field.kind == "price" and decimals_of(value) > MOST_DECIMALS:
        return f"{field.name}: more than 18 decimals; must have at most 18"
    return None if found is None else f"{field.name}: {found}; {field.rule}"


def _text_problem(field: PriceField, text: str) -> str | None:
    if not 1 <= len(text) <= cast("int", field.most):
        return f"text of {len(text)} characters"
    return "white space" if field.kind == "label" and not cleaned_label(text) else None


def _number_problem(field: PriceField, value: object) -> str | None:
    number = _number_of(value)
    if number is None:
        return _kind_of(value)
    if number < 0:
        return "a negative number"
    if field.kind == "tokens" and number != number.to_integral_value():
        return "a number with a fraction"
    most = MAX_TOKENS if field.kind == "tokens" else MAX_PRICE
    return "a number above the limit" if number > most else None


def _hour_problem(field: PriceField, text: str) -> str | None:
    match = _TIME.fullmatch(text)
    if match is None:
        return f"{field.name}: not a valid time; {field.rule}"
    if match["offset"] is None:
        return f"{field.name}: a time without UTC offset; {field.rule}"
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return f"{field.name}: not a valid date; {field.rule}"
    return _instant_problem(field, instant)


def _instant_problem(field: PriceField, instant: datetime) -> str | None:
    if instant.utcoffset() is None:
        return f"{field.name}: a time without UTC offset; {field.rule}"
    try:
        instant = instant.astimezone(UTC)
    except OverflowError:
        instant = datetime.min.replace(tzinfo=UTC)
    if instant < EARLIEST:
        return f"{field.name}: a time out of range; must be from 2000-01-01 to 9999-12-31 UTC"
    if not is_whole_hour(instant):
        return f"{field.name}: a time within an hour; {field.rule}"
    return None


def _pair_problem(subject: Subject, given: Mapping[str, object]) -> str | None:
    together = "or the other way round; must be both, or both null"
    if subject == "model_aliases":
        if (given["priced_provider"] is None) != (given["priced_model"] is None):
            return f"priced_model: given without priced_provider, {together}"
    elif subject == "price_list_rules":
        if (given["base_list"] is None) != (given["factor"] is None):
            return f"factor: given without base_list, {together}"
        if given["base_list"] == given["price_list"]:
            return "base_list: the list itself; must be another price list"
    return None


def _holding_problem(element: object) -> str | None:
    """Return why PostgreSQL cannot hold a value: for NUL, surrogates and very long numbers."""
    found = [value for value in _values_of(element) if _is_unholdable(value)]
    if not found:
        return None
    if isinstance(element, Mapping) and all(isinstance(value, str) for value in found):
        given = cast("Mapping[str, object]", element)
        for name in sorted(given, key=lambda name: _place_in_jsonb(_marked(name))):
            if _is_unholdable_text(name):
                return f"a field: {_UNHOLDABLE}"
            inside = _values_of(given[name])
            if any(isinstance(value, str) and _is_unholdable_text(value) for value in inside):
                return f"{name}: {_UNHOLDABLE}"
    return "event: a value that PostgreSQL cannot hold; numbers have at most 131072 digits"


def _values_of(value: object) -> Iterator[object]:
    """Yield a value, and all names and values in it."""
    yield value
    if isinstance(value, Mapping):
        for name, content in cast("Mapping[str, object]", value).items():
            yield name
            yield from _values_of(content)
    elif isinstance(value, list | tuple):
        for content in cast("list[object]", value):
            yield from _values_of(content)


def _is_unholdable(value: object) -> bool:
    if isinstance(value, str):
        return _is_unholdable_text(value)
    number = _number_of(value)
    if number is None or number.is_zero():
        return False
    exponent = cast("int", number.as_tuple().exponent)
    return number.adjusted() >= _MOST_DIGITS or -exponent > _MOST_SCALE


def _is_unholdable_text(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _marked(name: str) -> str:
    """Return a name as SQL has it when it looks for what it cannot hold."""
    return "".join(
        f"{_MARK}u{ord(one):04x}" if one == "\0" or "\ud800" <= one <= "\udfff" else one
        for one in name
    )


def _place_in_jsonb(name: str) -> tuple[int, bytes]:
    text = name.encode("utf-8", "surrogatepass")
    return len(text), text


def _kind_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return "a number" if _number_of(value) is not None else kind_of(value)


def _number_of(value: object) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, float):  # as JSON writes it
        return Decimal(repr(value)) if math.isfinite(value) else None
    return value if isinstance(value, Decimal) and value.is_finite() else None


def decimals_of(value: object) -> int:
    """Return how many digits a number has after the point, without trailing zeros."""
    number = _number_of(value)
    return 0 if number is None else len(number_text(number).partition(".")[2])


def is_whole_hour(instant: datetime) -> bool:
    """Return whether prices may begin at an instant in UTC."""
    return instant.minute == instant.second == instant.microsecond == 0


def cleaned_label(text: str) -> str:
    """Return a label as SQL records it: in lower case, without outer white space."""
    stripped = text.strip(" \t\n\r\f\v")
    return "".join(one.lower() if one.isascii() else one for one in stripped)


def to_wire(subject: Subject, fields: Mapping[str, object]) -> str:
    """Return an object as JSON text, its numbers digit by digit.

    Raises:
        InvalidPriceError: a rule is broken.

    """
    if problem := price_problem(subject, fields):
        raise InvalidPriceError(problem)
    members = (f"{quoted(name)}:{_json(value)}" for name, value in fields.items())
    return f"{{{','.join(members)}}}"


def _json(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, datetime):
        return quoted(canonical_time(value.astimezone(UTC)))
    return number_text(cast("Decimal", _number_of(value)))


def number_text(number: Decimal) -> str:
    """Return a number as JSON and people write it: all of its digits, no exponent, no zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
