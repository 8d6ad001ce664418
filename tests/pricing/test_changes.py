"""What an import records: the list's prices, without a false past."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from token_tracking.pricing.bundled import Bundled, Period
from token_tracking.pricing.changes import difference, in_force
from token_tracking.pricing.price import Price, PriceKey

SINCE, NOW = datetime(2026, 3, 1, 10, tzinfo=UTC), datetime(2026, 11, 30, 8, tzinfo=UTC)
JUNE, JULY = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
NEXT_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
KEY = PriceKey("list", "openai", "gpt-4o", "input")
SOURCE = "genai-prices 0.2.3"


def price(at: datetime, amount: str | None, source: str = "genai-prices 0.2.2", **more) -> Price:
    number = None if amount is None else Decimal(amount)
    return Price("openai", "gpt-4o", "input", at, number, source=source, **more)


def listed(*periods: tuple[datetime | None, str | None], key: PriceKey = KEY) -> Bundled:
    return Bundled(
        SOURCE,
        {key: [Period(at, None if text is None else Decimal(text)) for at, text in periods]},
    )


def changes(bundled: Bundled, *recorded: Price, since: datetime = SINCE) -> list[tuple]:
    found = difference(bundled, recorded, since, NOW).changes
    return [
        (change.price.valid_from, None if change.price.amount is None else str(change.price.amount))
        for change in found
    ]


def test_a_price_without_date_counts_from_since():
    assert changes(listed((None, "2.5"))) == [(SINCE, "2.5")]


def test_a_price_with_a_date_counts_from_that_date():
    assert changes(listed((None, "2.5"), (JUNE, "2"))) == [(SINCE, "2.5"), (JUNE, "2")]
    assert changes(listed((None, None), (NEXT_YEAR, "2"))) == [(NEXT_YEAR, "2")]
    # Before since, too: the list knows when it began, so the price before it is over.
    assert changes(listed((None, "2.5"), (JUNE, "2")), since=JULY) == [(JUNE, "2")]


def test_what_is_in_force_is_not_recorded_again():
    assert changes(listed((None, "2.5")), price(SINCE, "2.50")) == []
    assert changes(listed((None, "2.5"), (JUNE, "2")), price(SINCE, "2.5"), price(JUNE, "2")) == []


def test_another_price_without_date_never_rewrites_the_past():
    assert changes(listed((None, "2")), price(SINCE, "2.5")) == [(NOW, "2")]
    assert changes(listed((None, "2")), price(SINCE, "2.5"), price(NOW, "2")) == []


def test_a_past_without_date_keeps_its_price_when_a_date_appears():
    """The list had 2.5, and says now: 2.4 before June, 2 from June on."""
    assert changes(listed((None, "2.4"), (JUNE, "2")), price(SINCE, "2.5")) == [(JUNE, "2")]


def test_a_date_corrects_what_came_later_without_one():
    """The change of June was imported in July, when the list did not say its date."""
    recorded = price(SINCE, "2.5"), price(JULY, "2")
    assert changes(listed((None, "2.5"), (JUNE, "2")), *recorded) == [(JUNE, "2")]
    assert changes(listed((None, "2.5"), (JUNE, "1.9")), *recorded) == [
        (JUNE, "1.9"),
        (JULY, "1.9"),
    ]


def test_a_correction_of_a_date_ends_at_the_next_one():
    recorded = price(SINCE, "3"), price(JUNE, "2"), price(NEXT_YEAR, "1")
    periods = (None, "3"), (JUNE, "2.1"), (NEXT_YEAR, "1")
    assert changes(listed(*periods), *recorded) == [(JUNE, "2.1")]


def test_an_earlier_since_fills_what_has_no_price():
    assert changes(listed((None, "2")), price(JUNE, "2")) == [(SINCE, "2")]
    # Whether 2 or 2.5 was the price then is unknown: it stays unpriced.
    assert changes(listed((None, "2")), price(JUNE, "2.5")) == [(NOW, "2")]


def test_prices_of_other_origin_are_kept_and_told():
    found = difference(listed((None, "2")), [price(SINCE, "2.5", "set")], SINCE, NOW)
    assert (found.changes, found.kept) == ([], [KEY])
    corrected = [price(SINCE, "2"), price(JUNE, "2.5", "prices.csv")]
    assert difference(listed((None, "2")), corrected, SINCE, NOW).kept == [KEY]
    assert difference(listed((None, "2")), [price(SINCE, "2", "set")], SINCE, NOW).kept == []


def test_another_currency_is_another_price():
    assert changes(listed((None, "2")), price(SINCE, "2", currency="EUR")) == [(NOW, "2")]


def test_a_bracket_that_the_list_has_no_longer_ends():
    above = price(SINCE, "5", context_over=272_000)
    assert changes(listed((None, "2.5")), price(SINCE, "2.5"), above) == [(NOW, None)]
    other = Price("openai", "retired", "input", SINCE, Decimal(1), source=SOURCE)
    assert changes(listed((None, "2.5")), price(SINCE, "2.5"), other) == []


HOURS = st.integers(0, 12).map(lambda months: SINCE + timedelta(hours=720 * months))
AMOUNTS = st.sampled_from([None, "1", "2", "3"])


@given(
    st.lists(st.tuples(HOURS, AMOUNTS), unique_by=lambda one: one[0], max_size=4),
    st.lists(st.tuples(HOURS, AMOUNTS), unique_by=lambda one: one[0], max_size=5),
    AMOUNTS,
)
def test_afterwards_the_list_counts_and_nothing_is_left_to_do(dated, recorded, undated):
    bundled = listed((None, undated), *sorted(dated))
    before = [price(at, amount) for at, amount in recorded]
    found = difference(bundled, before, SINCE, NOW).changes
    stored = {one.valid_from: one for one in before}
    for change in found:
        assert change.before == in_force(list(stored.values()), change.price.valid_from)
        stored[change.price.valid_from] = change.price
    after = list(stored.values())
    assert changes(bundled, *after) == []
    for at in [NOW, *(start for start, _ in dated)]:
        wanted = next(
            (one for one in reversed(bundled.periods[KEY]) if one.start and one.start <= at),
            bundled.periods[KEY][0],
        )
        counted = in_force(after, at)
        assert (counted.amount if counted else None) == wanted.amount
    # What had a price before the first date keeps it.
    first = min((start for start, _ in dated), default=NOW)
    for hour in range(0, 9000, 240):
        at = SINCE + timedelta(hours=hour)
        was = in_force(before, at)
        if was is not None and at < min(first, NOW):
            assert in_force(after, at) == was
