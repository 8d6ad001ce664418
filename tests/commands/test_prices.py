"""`token-tracking prices`: the list that is imported, what people set, and names without price."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.commands import COMMAND, Ended, run
from tests.support.databases import Database, fresh_database
from tests.support.project import DbtProject
from tests.support.waiting import until
from token_tracking import UsageTracker
from token_tracking.errors import PricesError
from token_tracking.pricing import bundled
from token_tracking.pricing.bundled import our_names, read_bundled
from token_tracking.pricing.rules import CONTEXT_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterator

SINCE = datetime(2025, 6, 1, 10, tzinfo=UTC)
COUNT = "select count(*) from token_tracking_raw.model_prices"


def prices(database: Database, *words: str | Path, **env: str) -> Ended:
    return run("prices", *words, env={**database.env, "COLUMNS": "200", **env})


def objects(done: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def event(**fields: object) -> dict[str, object]:
    usual = {"tenant_id": "acme", "input_tokens": 1000, "output_tokens": 100}
    return usual | {"occurred_at": "2026-09-01T10:20:00Z"} | fields


def recorded(database: Database, model: str = "gpt-4o") -> list[tuple]:
    return database.rows(
        "select token_kind, valid_from, revision, amount, service_tier, context_over, price_list,"
        " source, note from token_tracking_raw.model_prices where model = %s"
        " order by token_kind, service_tier, context_over, valid_from, revision",
        (model,),
    )


# --- the bundled list


@pytest.fixture(scope="module")
def imported(server) -> Iterator[Database]:
    for database in fresh_database(server):
        done = prices(database, "import", "--since", f"{SINCE:%Y-%m-%dT%H}:00", "--apply")
        assert done.code == 0, done.err
        assert " prices recorded, 0 known" in done.err
        yield database


# What a case's tokens cost, as the warehouse looks prices up.
RATE = """
    select sum(kinds.tokens * price.amount * 0.000001),
        coalesce(sum(kinds.tokens) filter (where price.amount is null), 0)
    from jsonb_array_elements(%s::jsonb) with ordinality as cases (one, number)
    cross join lateral jsonb_each_text(cases.one -> 'kinds') as given (token_kind, text)
    cross join lateral (select given.text::bigint as tokens) as kinds
    left join lateral (
        select found.amount
        from (
            select distinct on (prices.context_over) prices.context_over, prices.amount
            from token_tracking_raw.model_prices as prices
            where
                prices.price_list = 'list'
                and prices.provider = cases.one ->> 'provider'
                and prices.model = cases.one ->> 'model'
                and prices.token_kind = given.token_kind
                and prices.service_tier = cases.one ->> 'tier'
                and prices.context_over <= (cases.one ->> 'bracket')::bigint
                and prices.valid_from <= (cases.one ->> 'at')::timestamptz
            order by prices.context_over, prices.valid_from desc, prices.revision desc
        ) as found
        where found.amount is not null
        order by found.context_over desc
        limit 1
    ) as price on true
    group by cases.number
    order by cases.number
"""
CONTEXTS: dict[str, dict[str, str]] = {
    "standard": {},
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
}
TIMES = [
    datetime(2025, 6, 1, 10, tzinfo=UTC),
    datetime(2026, 8, 20, 23, tzinfo=UTC),
    datetime(2026, 8, 21, tzinfo=UTC),
    datetime(2026, 10, 13, tzinfo=UTC),
    datetime(2026, 11, 28, 12, tzinfo=UTC),
    datetime(2027, 1, 1, tzinfo=UTC),
]
SIZES = [1_000, 128_001, 200_000, 200_001, 272_000, 272_001, 600_000]


def cases() -> Iterator[tuple[dict[str, Any], Decimal]]:
    """Every model of the usual providers, at all times and sizes, in the tiers that it has then."""
    from genai_prices.data import providers
    from genai_prices.types import TimeOfDateConstraint, Usage

    for provider in providers:
        if provider.id not in bundled.USUAL_PROVIDERS:
            continue
        for number, model in enumerate(provider.models):
            conditions = model.prices if isinstance(model.prices, list) else []
            if any(isinstance(one.constraint, TimeOfDateConstraint) for one in conditions):
                continue
            for at in TIMES:
                for tier, context in CONTEXTS.items():
                    variants = [
                        variant
                        for variant in model.price_variants or []
                        if variant.when.items() <= context.items()
                        and (variant.constraint is None or variant.constraint.active(at))
                    ]
                    if tier != "standard" and not variants:
                        continue
                    # Each model some sizes: all sizes at all times would take a minute.
                    for size in SIZES[number % 2 :: 2]:
                        kinds = {
                            "input": size - 9 * (size // 20),
                            "cache_read": size // 4,
                            "cache_write": size // 10,
                            "cache_write_long": 9 * (size // 20) - size // 4 - size // 10,
                            "output": 700,
                            "reasoning": 300,
                        }
                        written = kinds["cache_write"] + kinds["cache_write_long"]
                        usage = Usage(
                            input_tokens=size,
                            cache_read_tokens=kinds["cache_read"],
                            cache_write_tokens=written,
                            cache_write_1h_tokens=kinds["cache_write_long"],
                            output_tokens=1000,
                            output_reasoning_tokens=300,
                        )
                        told = model.calc_price(
                            usage, provider, genai_request_timestamp=at, price_context=context
                        )
                        if "requests_kcount" in vars(told.model_price):
                            continue
                        yield (
                            {
                                "provider": our_names(provider.id)[-1],
                                "model": model.id,
                                "tier": tier,
                                "bracket": max([0, *(one for one in CONTEXT_BOUNDS if one < size)]),
                                "at": at.isoformat(),
                                "kinds": kinds,
                            },
                            told.total_price,
                        )


def test_imported_prices_cost_what_genai_prices_says(imported: Database):
    asked = list(cases())
    assert len(asked) > 10_000
    assert {case["tier"] for case, _ in asked} == set(CONTEXTS)
    rated = imported.rows(RATE, (json.dumps([case for case, _ in asked]),))
    unpriced = 0
    for (case, expected), (cost, without) in zip(asked, rated, strict=True):
        # What has no price costs nothing there; here it is counted.
        assert (cost or 0) == expected, case
        unpriced += without > 0
    # Most of them embeddings, which have no output.
    assert 0 < unpriced < len(asked) / 8


def test_a_second_import_writes_nothing(imported: Database):
    before = imported.value(COUNT)
    words = ("import", "--since", f"{SINCE:%Y-%m-%dT%H}:00", "--apply")
    done = prices(imported, *words, "--format", "json")
    assert (done.code, done.out) == (0, "")
    assert f"nothing to do: the prices in force are those of genai-prices {VERSION}" in done.err
    assert imported.value(COUNT) == before


VERSION = bundled.metadata.version("genai-prices")


def test_every_kind_has_a_row_that_says_where_it_is_from(imported: Database):
    rows = {
        kind: (amount, source, note)
        for kind, _, _, amount, tier, over, _, source, note in recorded(imported)
        if (tier, over) == ("standard", 0)
    }
    source = f"genai-prices {VERSION}"
    assert rows == {
        "input": (Decimal("2.5"), source, None),
        "cache_read": (Decimal("1.25"), source, None),
        "cache_write": (Decimal("2.5"), source, "the price of input"),
        "cache_write_long": (Decimal("2.5"), source, "the price of input"),
        "output": (Decimal(10), source, None),
        "reasoning": (Decimal(10), source, "the price of output"),
    }


def test_google_and_vertex_have_the_prices_under_both_names(imported: Database):
    [(providers,)] = imported.rows(
        "select array_agg(distinct provider order by provider)"
        " from token_tracking_raw.model_prices where model = 'gemini-2.5-flash'"
    )
    assert providers == ["gcp.gemini", "gcp.vertex_ai"]


def test_what_rows_cannot_say_is_told(imported: Database):
    done = prices(imported, "import")
    assert "left out, its price depends on the time of day: deepseek/deepseek-chat" in done.err
    assert "web_searches_kcount (" in done.err
    assert "models without a price of tokens" in done.err
    assert imported.value(f"{COUNT} where model = 'deepseek-chat'") == 0


def test_without_apply_nothing_is_written(emptied: Database):
    with UsageTracker(dsn=emptied.url) as tracker:
        assert tracker.track_many_sync([event(model="gpt-4o", provider="openai")]) == [True]
    before = emptied.value(COUNT)
    done = prices(emptied, "import", "--providers", "openai")
    assert done.code == 0
    assert "prices without a date count from 2026-09-01T10:00Z (the hour of the first" in done.err
    assert "differ; --apply records them" in done.err
    assert "more lines; --format json shows all" in done.err
    assert "│ openai   │ ada" in done.out
    assert emptied.value(COUNT) == before
    as_json = objects(prices(emptied, "import", "--providers", "openai", "--format", "json"))
    assert {row["valid_from"] for row in as_json if row["model"] == "gpt-4o"} == {
        "2026-09-01T10:00:00+00:00",
        "2026-10-12T00:00:00+00:00",
        "2026-10-14T00:00:00+00:00",
    }
    assert {row["provider"] for row in as_json} == {"openai"}


def test_a_price_that_was_set_is_kept(database: Database):
    assert prices(database, "set", "openai", "gpt-4o", "input=9", "--from", "2026-01-01").code == 0
    words = ("import", "--providers", "openai", "--since", "2026-01-01", "--apply")
    done = prices(database, *words)
    assert "kept, because it was not imported: openai/gpt-4o input, tier standard" in done.err
    [amounts] = [
        [row[3] for row in recorded(database) if (row[0], row[4]) == ("input", "standard")]
    ]
    assert amounts == [9]
    assert {row[3] for row in recorded(database) if row[0] == "output"} >= {Decimal(10)}


def test_a_list_that_changes_counts_from_the_next_hour(database: Database):
    """An older version of the package had other prices, and did not know the date of one."""
    old = [
        {
            "provider": "openai",
            "model": model,
            "token_kind": "input",
            "valid_from": "2026-03-01T00:00:00Z",
            "amount": 77,
            "source": "genai-prices 0.2.2",
        }
        for model in ("gpt-4o", "gpt-5.6-sol")
    ]
    database.rows(
        "select * from token_tracking_raw.record_model_prices(%s::json)", (json.dumps(old),)
    )
    before = datetime.now(UTC)
    words = ("import", "--providers", "openai", "--since", "2026-03-01", "--apply")
    assert prices(database, *words).code == 0
    undated = [row[1:4] for row in recorded(database) if (row[0], row[4]) == ("input", "standard")]
    assert undated[0] == (datetime(2026, 3, 1, tzinfo=UTC), 1, Decimal(77))
    [(at, _, amount)] = undated[1:]
    assert before <= at <= datetime.now(UTC) + timedelta(hours=1)
    assert (at.minute, at.second, amount) == (0, 0, Decimal("2.5"))
    dated = [
        row[1:4]
        for row in recorded(database, "gpt-5.6-sol")
        if (row[0], row[4], row[5]) == ("input", "standard", 0)
    ]
    assert dated == [
        (datetime(2026, 3, 1, tzinfo=UTC), 1, Decimal(77)),
        (datetime(2026, 8, 21, tzinfo=UTC), 1, Decimal(4)),
    ]


def test_the_list_is_read_without_a_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from genai_prices import data_snapshot

    # What UpdatePrices would have fetched does not count.
    monkeypatch.setattr(data_snapshot, "_custom_snapshot", object())
    assert len(read_bundled().periods) > 4000
    assert bundled.match("openai", "gpt-4o-2024-08-06") == ("openai", "gpt-4o")


def test_noise_of_aggregators_is_rounded():
    found = [
        (key, period)
        for key, periods in read_bundled(["all"]).periods.items()
        for period in periods
        if period.note and "rounded from" in period.note
    ]
    assert {key.provider for key, _ in found} <= {
        name for name in read_bundled(["all"]).providers if name.startswith(("openr", "hugg"))
    }
    for _, period in found:
        assert period.amount is not None
        assert period.amount == round(period.amount, 12)
        was = Decimal(str(period.note).rpartition(" ")[2])
        assert 0 < abs(was - period.amount) < Decimal("1e-12")
    assert found


def test_providers_have_either_name_and_the_wrong_one_lists_all():
    assert read_bundled(["mistralai"]).providers == read_bundled(["mistral"]).providers
    assert read_bundled([" GCP.Gemini "]).providers == ["gcp.gemini", "gcp.vertex_ai"]
    with pytest.raises(PricesError, match=r"no provider 'opnai'; it has anthropic, .*openai"):
        read_bundled(["opnai"])


def test_without_the_extra_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundled, "PACKAGE", "genai-prices-of-nowhere")
    with pytest.raises(PricesError, match=r"pip install 'token-tracking\[prices\]'"):
        read_bundled()


# --- set, load, show and the short ways


def test_set_records_from_the_next_hour_and_fills_in_reasoning(database: Database):
    before = datetime.now(UTC)
    done = prices(database, "set", "OpenAI", "gpt-4o", "input=2.50", "output=10", "--note", "why")
    assert done.code == 0, done.err
    assert "reasoning costs what output does" in done.err
    rows = recorded(database)
    assert [(row[0], row[3], row[8]) for row in rows] == [
        ("input", Decimal("2.5"), "why"),
        ("output", 10, "why"),
        ("reasoning", 10, "why"),
    ]
    [at] = {row[1] for row in rows}
    assert before <= at <= datetime.now(UTC) + timedelta(hours=1)
    assert database.value("select distinct provider from token_tracking_raw.model_prices") == (
        "openai"
    )


def test_the_same_hour_again_is_a_correction(database: Database):
    words = ("set", "openai", "gpt-4o", "--from", "2026-03-01")
    assert prices(database, *words, "input=2").code == 0
    again = prices(database, *words, "input=2.0")
    assert "recorded before, from 2026-03-01: nothing to do" in again.err
    done = prices(database, *words, "input=0", "--format", "json")
    [change] = objects(done)
    assert (change["amount"], change["in_force"]) == ("0", "2")
    assert prices(database, *words, "input=none").code == 0
    assert [row[2:4] for row in recorded(database)] == [(1, 2), (2, 0), (3, None)]


def test_set_says_until_when_the_price_counts(database: Database):
    assert prices(database, "set", "openai", "gpt-4o", "input=2", "--from", "2026-06-01").code == 0
    done = prices(database, "set", "openai", "gpt-4o", "input=3", "--from", "2026-03-01")
    assert "input: counts until 2026-06-01, where the next recorded price begins" in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inputs=2"], "the kinds are input, cache_read, cache_write, cache_write_long, output"),
        (["input"], "'input' is not KIND=PRICE"),
        (["input=2", "input=3"], "input is given twice"),
        (["input=2,5"], "input: '2,5'; must be a number, 0 for free, or none to end the price"),
        (["input=-1"], "amount: a negative number; must be a number from 0 to 1000000000"),
        (["input=NaN"], "input: 'NaN'; must be a number"),
        (
            ["input=1", "--from", "2026-03-01T10:30"],
            "prices begin on whole hours of UTC, as totals",
        ),
        (["input=1", "--from", "2026-03-01T10:30"], "take 2026-03-01T10:00Z or 2026-03-01T11:00Z"),
        (["input=1", "--from", "2026-03-01T10:00+05:30"], "is within an hour"),
        (["input=1", "--from", "soon"], "'soon' is not a time; write it as 2026-12-01"),
        (["input=1", "--from", "1999-01-01"], "valid_from: a time out of range"),
        (["input=1", "--currency", "dollar"], "currency: another text; must be a code of ISO 4217"),
        (["input=1", "--over", "-1"], "Invalid value for '--over'"),
        (["input=1", "--list", ""], "price_list: text of 0 characters"),
    ],
)
def test_wrong_words_teach_and_write_nothing(emptied: Database, words: list[str], says: str):
    before = emptied.value(COUNT)
    done = prices(emptied, "set", "openai", "gpt-4o", *words)
    assert done.code == 2
    assert says in " ".join(done.err.replace("│", " ").split())
    assert emptied.value(COUNT) == before


def test_a_bound_that_the_warehouse_does_not_know_warns(database: Database):
    done = prices(database, "set", "openai", "gpt-4o", "input=1", "--over", "150000")
    assert "150000 is not one of the bounds of context_bounds (32,000, 100,000," in done.err
    usual = prices(database, "set", "openai", "gpt-4o", "input=1", "--over", "200000")
    assert "bounds" not in usual.err


GOOD_FILE = """provider,model,token_kind,valid_from,amount,context_over,note
mine,large,input,2026-03-01,1.25,,
mine,large,output,2026-03-01T00:00+00:00,none,,"two
lines"
mine,large,input,2026-03-01,2.123456789012345678,200000,
"""
BAD_FILE = """provider,model,token_kind,valid_from,amount
mine,"la
rge",input,2026-03-01,1.25
mine,large,inputs,2026-03-01,1
mine,large,output,2026-03-01T00:30,1
Mine ,large,reasoning,2026-03-01,1
mine,large,reasoning,2026-03-01T01:00+01:00,2
mine,large,input,2026-03-01,
mine,large,input,2026-03-01
"""


def test_load_takes_all_or_nothing_and_names_the_lines(database: Database, tmp_path: Path):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(GOOD_FILE, "utf-8")
    bad.write_text(BAD_FILE, "utf-8")
    refused = prices(database, "load", bad)
    assert refused.code == 3
    assert [line.partition("bad.csv, ")[2] for line in refused.err.splitlines()[:-1]] == [
        "line 4: token_kind: another text; must be one of input, cache_read, cache_write,"
        " cache_write_long, output, reasoning, unsplit",
        "line 5: '2026-03-01T00:30' is within an hour: prices begin on whole hours of UTC, as"
        " totals are by the hour; take 2026-03-01 or 2026-03-01T01:00Z",
        "line 7: the same price from the same time as line 6",
        "line 8: amount: empty; must be a number, 0 for free, or none to end the price",
        "line 9: more or fewer cells than the first line",
    ]
    assert "5 rows are wrong; nothing is recorded" in refused.err
    trial = prices(database, "load", good, "--dry-run")
    assert trial.out.endswith("good.csv: 3 prices would be recorded, 0 known\n")
    assert database.value(COUNT) == 0
    assert prices(database, "load", good).out.endswith("good.csv: 3 prices recorded, 0 known\n")
    assert prices(database, "load", good).out.endswith("good.csv: 0 prices recorded, 3 known\n")
    assert [(row[0], row[3], row[5], row[7], row[8]) for row in recorded(database, "large")] == [
        ("input", Decimal("1.25"), 0, "good.csv", None),
        ("input", Decimal("2.123456789012345678"), 200_000, "good.csv", None),
        ("output", None, 0, "good.csv", "two\nlines"),
    ]


def test_an_exported_table_can_be_loaded(database: Database, tmp_path: Path):
    assert prices(database, "set", "openai", "gpt-4o", "input=2.5", "output=10").code == 0
    rows = database.rows("select to_jsonb(prices) from token_tracking_raw.model_prices as prices")
    file = tmp_path / "prices.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for (row,) in rows), "utf-8")
    assert "0 prices recorded, 3 known" in prices(database, "load", file).out
    file.write_text('{"provider": "x"\n[1]\n{"amount": NaN}\n{"amount": 1e400}\n', "utf-8")
    refused = prices(database, "load", file)
    assert refused.code == 3
    assert [line.rpartition("line ")[2][:8] for line in refused.err.splitlines()[:-1]] == [
        "1: not J",
        "2: not a",
        "3: not J",
        "4: provi",
    ]
    other = tmp_path / "prices.txt"
    other.write_text("", "utf-8")
    assert "must be a .csv or .jsonl file" in prices(database, "load", other).err
    file.write_text("\n", "utf-8")
    assert prices(database, "load", file).code == 3


def test_show_follows_aliases_lists_brackets_and_time(database: Database):
    words = ("set", "openai", "gpt-4o", "--from", "2026-03-01")
    assert prices(database, *words, "input=2", "output=10").code == 0
    assert prices(database, *words, "input=4", "--over", "200000").code == 0
    assert prices(database, *words, "input=1.1", "--list", "customer").code == 0
    rule = ("rule", "customer", "--base", "list", "--factor", "1.2", "--from", "2026-06-01")
    assert prices(database, *rule).code == 0
    alias = ("alias", "azure", "ours", "openai", "gpt-4o", "--from", "2026-06-01")
    assert prices(database, *alias).code == 0

    def shown(model: str, at: str, *more: str) -> set[tuple[str, str, int, str]]:
        done = prices(database, "show", model, "--at", at, "--format", "json", *more)
        assert done.code == (0 if done.out else 3)
        return {
            (row["price_list"], row["token_kind"], row["context_over"], row["amount"])
            for row in objects(done)
        }

    own = {("list", "input", 0, "2"), ("list", "input", 200_000, "4")}
    public = own | {("list", "output", 0, "10"), ("list", "reasoning", 0, "10")}
    assert shown("gpt-4o", "2026-02-28") == set()
    assert shown("gpt-4o", "2026-03-01") == public | {("customer", "input", 0, "1.1")}
    # The list's own price counts for every size; the others are a factor of the base's.
    customer = {
        ("customer", "input", 0, "1.1"),
        ("customer", "output", 0, "12"),
        ("customer", "reasoning", 0, "12"),
    }
    assert shown("ours", "2026-06-01") == public | customer
    assert shown("ours", "2026-05-31T23:00") == set()
    assert shown("gpt-4o", "2026-06-01", "--list", "customer") == customer
    assert shown("gpt-4o", "2026-06-01", "--provider", "mine") == set()
    people = prices(database, "show", "ours", "--at", "2026-06-01T00:59")
    assert "azure/ours is priced as openai/gpt-4o" in people.err
    assert "│ openai   │ gpt-4o │ list     │ 200,000 │ 2026-03-01 │     4 │" in people.out
    assert prices(database, "alias", "azure", "ours", "--end", "--from", "2026-07-01").code == 0
    assert shown("ours", "2026-07-01") == set()
    assert shown("ours", "2026-06-30") == public | customer


def test_assignments_and_rules_are_recorded_and_end(database: Database):
    assert prices(database, "assign", "acme", "customer", "--from", "2026-03-01").code == 0
    assert prices(database, "assign", "acme", "--end", "--from", "2026-04-01").code == 0
    assert prices(database, "rule", "customer", "--end", "--from", "2026-04-01").code == 0
    assert database.rows(
        "select tenant_id, price_list from token_tracking_raw.tenant_price_lists"
        " order by valid_from"
    ) == [("acme", "customer"), ("acme", None)]
    assert database.rows("select base_list, factor from token_tracking_raw.price_list_rules") == [
        (None, None)
    ]
    for words in (
        ("assign", "acme"),
        ("assign", "acme", "customer", "--end"),
        ("rule", "customer", "--base", "list"),
        ("rule", "customer", "--base", "customer", "--factor", "2"),
        ("rule", "customer", "--base", "list", "--factor", "much"),
        ("alias", "azure", "ours", "openai"),
        ("alias", "azure", "ours"),
    ):
        done = prices(database, *words)
        assert done.code == 2, (words, done.err)
        assert "Error" in done.err


# --- names without price


EVENTS = [
    event(provider="openai", model="gpt-4o"),
    event(provider="openai", model="gpt-4o-2024-08-06", input_tokens=5000),
    event(provider="litellm", model="openai/gpt-4o"),
    event(provider="anthropic", model="claude-sonnet-4-5-20250929"),
    event(provider="elsewhere", model="my-model", input_tokens=9000),
    event(provider="openai", model="gpt-4o", service_tier="flex", input_tokens=10),
    event(model="our-own"),
]


@pytest.fixture(scope="module")
def built(server, tmp_path_factory) -> Iterator[tuple[Database, DbtProject]]:
    for database in fresh_database(server):
        with UsageTracker(dsn=database.url) as tracker:
            assert tracker.track_many_sync(EVENTS) == [True] * len(EVENTS)
        assert "build the marts first, with dbt build" in prices(database, "suggest").err
        words = ("set", "openai", "gpt-4o", "input=2", "output=10", "--from", "2026-09-01")
        assert prices(database, *words).code == 0
        mine = ("set", "mine", "my-model", "input=1", "output=1", "--from", "2026-09-01")
        assert prices(database, *mine).code == 0
        project = DbtProject(database.env, tmp_path_factory.mktemp("dbt"))
        project.must("run")
        yield database, project


def test_names_are_proposed_and_price_nothing_until_accepted(built: tuple[Database, DbtProject]):
    database, project = built
    done = prices(database, "suggest", "--format", "json")
    assert done.code == 3
    found = {f"{row['provider']}/{row['model']}": row for row in objects(done)}
    proposed = {
        name: (row["priced_provider"], row["priced_model"], row["found_by"])
        for name, row in found.items()
    }
    assert proposed == {
        "elsewhere/my-model": ("mine", "my-model", "same name at another provider"),
        "openai/gpt-4o-2024-08-06": ("openai", "gpt-4o", "spelling, genai-prices"),
        "litellm/openai/gpt-4o": ("openai", "gpt-4o", "spelling, genai-prices"),
        "anthropic/claude-sonnet-4-5-20250929": (
            "anthropic",
            "claude-sonnet-4-5",
            "genai-prices",
        ),
        "openai/gpt-4o": (None, None, None),
        "unknown/our-own": (None, None, None),
    }
    assert list(found)[:2] == ["elsewhere/my-model", "openai/gpt-4o-2024-08-06"]
    assert found["elsewhere/my-model"]["tokens"] == 9100
    assert found["openai/gpt-4o"]["tiers"] == ["flex"]
    assert (
        "has prices, but the last build found none for input, output (tier flex, price list list)"
    ) in found["openai/gpt-4o"]["says"]
    assert "import it first" in found["anthropic/claude-sonnet-4-5-20250929"]["says"]
    assert database.value("select count(*) from token_tracking_raw.model_aliases") == 0

    wrong = prices(database, "suggest", "--accept", "openai/gpt-4")
    assert wrong.code == 2
    assert "is not a model without price" in " ".join(wrong.err.split())
    without = prices(database, "suggest", "--accept", "unknown/our-own")
    assert without.code == 2
    assert database.value("select count(*) from token_tracking_raw.model_aliases") == 0

    accepted = prices(database, "suggest", "--accept", "litellm/openai/gpt-4o")
    assert accepted.code == 3
    assert "1 aliases recorded, 0 known" in accepted.err
    assert database.rows(
        "select provider, alias, valid_from, priced_provider, priced_model, source"
        " from token_tracking_raw.model_aliases"
    ) == [
        (
            *("litellm", "openai/gpt-4o", datetime(2026, 8, 31, tzinfo=UTC)),
            *("openai", "gpt-4o", "suggest: spelling, genai-prices"),
        )
    ]
    rest = prices(database, "suggest", "--accept-all", "--from", "2026-09-01T10:00")
    assert "recorded" in rest.err
    project.must("run")
    left = objects(prices(database, "suggest", "--format", "json"))
    assert sorted(f"{row['provider']}/{row['model']}" for row in left) == [
        "anthropic/claude-sonnet-4-5-20250929",
        "openai/gpt-4o",
        "unknown/our-own",
    ]
    people = prices(database, "suggest")
    assert "3 models without a price are left" in people.err
    assert "no proposal: set its price, or record an alias" in people.out


def test_an_alias_counts_from_its_time_only(built: tuple[Database, DbtProject]):
    database, _ = built
    assert prices(database, "show", "openai/gpt-4o", "--at", "2026-08-30").code == 3
    shown = prices(database, "show", "openai/gpt-4o", "--at", "2026-09-01", "--format", "json")
    assert {row["amount"] for row in objects(shown)} == {"2", "10"}


def test_a_name_that_has_no_price_is_told(database: Database):
    assert prices(database, "set", "openai", "gpt-4o", "input=2", "--from", "2026-03-01").code == 0
    for words, says in (
        (("assign", "acme", "custommer"), "the list 'custommer' has no price yet"),
        (("rule", "own", "--base", "lsit", "--factor", "2"), "the list 'lsit' has no price yet"),
        (("alias", "azure", "ours", "openai", "gpt4o"), "openai/gpt4o has no price yet"),
        (("assign", "acme", "list"), ""),
        (("assign", "acme", "own"), ""),
        (("alias", "azure", "ours", "openai", "gpt-4o"), ""),
    ):
        done = prices(database, *words, "--from", "2026-03-01")
        assert done.code == 0
        said = " ".join(done.err.split())
        assert says in said
        assert bool(says) == ("has no price yet" in said)


# --- what can go wrong


def test_a_role_without_rights_and_an_older_schema_are_told(database: Database):
    with closing(database.connect()) as connection:
        connection.execute(f"create role price_{os.getpid()} login")
    user = f"price_{os.getpid()}"
    try:
        for words in (("import",), ("set", "openai", "gpt-4o", "input=1"), ("show", "gpt-4o")):
            done = prices(database, *words, PGUSER=user)
            assert done.code == 1
            assert "Prices are kept by members of the role token_tracking_biller" in done.err
    finally:
        with closing(database.connect()) as connection:
            connection.execute(f"drop role {user}")
    with closing(database.connect()) as connection:
        connection.execute("drop table token_tracking_raw.model_prices")
    done = prices(database, "import", "--providers", "openai")
    assert done.code == 1
    assert "run token-tracking schema apply" in done.err
    assert prices(database, "import", PGPORT="1", PGHOST="127.0.0.1").code == 1


def test_ctrl_c_leaves_nothing_half_done(database: Database):
    with closing(database.connect()) as holder:
        holder.execute("begin")
        # Recording waits for it, reading does not.
        holder.execute("lock table token_tracking_raw.model_prices in share mode")
        command = subprocess.Popen(
            [*COMMAND, "prices", "import", "--since", "2026-01-01", "--apply"],
            env={**os.environ, **database.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = (
            "select count(*) from pg_locks where not granted"
            " and relation = 'token_tracking_raw.model_prices'::regclass"
        )
        until(lambda: database.value(waiting) == 1, 60, "the command records")
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=60)
        holder.execute("rollback")
    assert command.returncode == 130
    assert "interrupted: all is recorded or nothing" in said
    assert database.value(COUNT) == 0
