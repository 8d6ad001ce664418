"""Files into the raw tables: each row once, a bad row alone, whatever happens in the middle."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import psycopg
import pytest

from token_tracking.database import Database as TokenDatabase
from token_tracking.errors import LoadError
from token_tracking.loading import sender as sender_module
from token_tracking.loading.cells import columns_of, constants_of, instant_of, zone_of
from token_tracking.loading.load import Load
from token_tracking.loading.ordinals import Ordinals
from token_tracking.loading.plan import Plan
from token_tracking.loading.source import LONGEST_LINE, Format, Source
from token_tracking.rules import MAX_KEPT_BYTES
from token_tracking.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from token_tracking.loading.sender import FileReport

    from .conftest import Database

REAL = Path(__file__).parents[2] / "shared" / "data" / "AzureLLMInferenceTrace_conv.csv"
EVENTS = "select tenant_id, tokens, model from token_tracking_raw.usage_events order by 1, 2"
COUNT = "select count(*) from token_tracking_raw.usage_events"
REJECTIONS = (
    "select payload, reason from token_tracking_raw.usage_event_rejections order by 2, 1::text"
)


def plan(
    columns: str = "", constants: str = "tenant_id=acme", zone: str = "UTC", **rest: str
) -> Plan:
    return Plan(
        columns_of([columns] if columns else []),
        constants_of([constants] if constants else [], zone_of(zone)),
        zone_of(zone),
        **rest,
    )


def load(
    database: Database, files: Path | Sequence[Path], how: Plan | None = None, **callbacks: Callable
) -> Load:
    done = Load(how or plan(), database.url)
    paths = [files] if isinstance(files, Path) else files
    done.run([Source.of(str(path)) for path in paths], **callbacks)
    return done


def counts(report: FileReport) -> tuple[int, int, int, int]:
    return report.recorded, report.known, report.conflicts, report.refused


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str | bytes, name: str = "usage.csv") -> Path:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL.name}: it is no part of this repository")
def test_a_real_trace_is_loaded_once_and_reaches_the_monthly_totals(database, tmp_path):
    how = plan(
        "occurred_at=TIMESTAMP,input_tokens=ContextTokens,output_tokens=GeneratedTokens",
        "tenant_id=acme,model=gpt-4o",
    )
    assert counts(load(database, REAL, how).files[0]) == (19_366, 0, 0, 0)
    assert counts(load(database, REAL, how).files[0]) == (0, 19_366, 0, 0)
    [row] = database.rows(
        "select count(*), sum(input_tokens), sum(output_tokens), sum(tokens), min(occurred_at)"
        " from token_tracking_raw.usage_events where tenant_id = 'acme' and model = 'gpt-4o'"
    )
    first = datetime(2023, 11, 16, 18, 15, 46, 680590, UTC)
    assert row == (19_366, 22_361_870, 4_088_665, 26_450_535, first)
    Warehouse.find(database.env, tmp_path).build()
    [month] = database.rows(
        "select usage_month, tenant_id, model, event_count, input_tokens, output_tokens, tokens"
        " from token_tracking.monthly_token_usage"
    )
    numbers = (19_366, 22_361_870, 4_088_665, 26_450_535)
    assert month == (date(2023, 11, 1), "acme", "gpt-4o", *numbers)


def test_a_log_that_grew_adds_what_is_new(database, write):
    log = "tokens,model\n" + "5,a\n5,a\n7,b\n"
    assert counts(load(database, write(log)).files[0]) == (3, 0, 0, 0)
    assert counts(load(database, write(log + "5,a\n8,b\n")).files[0]) == (2, 3, 0, 0)
    assert database.rows(EVENTS) == [
        ("acme", n, m) for n, m in [(5, "a")] * 3 + [(7, "b"), (8, "b")]
    ]


def test_equal_rows_are_known_in_another_order_file_and_column_name(database, write):
    load(database, write("tokens,model,noise\n5,a,x\n7,b,y\n5,a,z\n"))
    shuffled = write("Model,spent\na,5\na,5\nb,7\n", "other.csv")
    assert counts(load(database, shuffled, plan("tokens=spent,model=Model")).files[0]) == (
        0,
        3,
        0,
        0,
    )


def test_equal_rows_of_two_files_of_one_load_are_the_same_rows(database, write):
    files = [write("tokens\n5\n5\n", "a.csv"), write("tokens\n5\n6\n", "b.csv")]
    assert [counts(file) for file in load(database, files).files] == [(2, 0, 0, 0), (1, 1, 0, 0)]


def test_a_source_separates_files_with_equal_rows(database, write):
    file = write("tokens\n5\n")
    assert load(database, file, plan(source="east")).files[0].recorded == 1
    assert load(database, file, plan(source="west")).files[0].recorded == 1
    assert load(database, file, plan(source="east")).files[0].known == 1


def test_other_constants_or_time_zone_never_count_a_row_twice(database, write):
    file = write("tokens,occurred_at\n5,2025-01-01 00:00\n")
    load(database, file)
    assert load(database, file, plan(zone="Asia/Kolkata")).files[0].known == 1
    again = load(database, file, plan(constants="tenant_id=acme,model=other")).files[0]
    assert counts(again) == (0, 0, 1, 0)
    assert again.problems[0].line == 2
    assert "model: other than recorded" in again.problems[0].reason
    assert database.value(COUNT) == 1


def test_rows_with_a_key_of_their_own(database, write):
    file = write("idempotency_key,tokens\nk1,5\nk1,5\nk2,7\nk2,8\n,9\n,9\n")
    report = load(database, file).files[0]
    assert counts(report) == (4, 1, 1, 0)
    assert (report.problems[0].line, report.problems[0].kind) == (5, "conflict")
    assert counts(load(database, file).files[0]) == (0, 5, 1, 0)


def test_the_key_column_can_have_another_name(database, write):
    file = write("request,tokens\nk1,5\n")
    load(database, file, plan("idempotency_key=request"))
    key = "select idempotency_key from token_tracking_raw.usage_events"
    assert database.rows(key) == [("k1",)]


def test_every_field_arrives(database, write):
    values = {
        "tenant_id": "acme",
        "tokens": "12",
        "token_type": " EMBEDDING ",
        "operation": "batch",
        "model": "m, with comma",
        "agent_id": "agent",
        "conversation_id": "c",
        "collection_id": 'say "x"',
        "input_tokens": "4",
        "output_tokens": "007",
        "metadata": '{"document_ids": ["a", "b"], "share": 0.5, "text": "ü\\n"}',
        "occurred_at": "2025-03-04T05:06:07.1234567+02:00",
    }
    file = write("")
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, values)
        writer.writeheader()
        writer.writerow(values)
    load(database, file, plan(constants=""))
    [row] = database.rows(
        "select tenant_id, tokens, token_type, operation, model, agent_id, conversation_id,"
        " collection_id, input_tokens, output_tokens, metadata, occurred_at"
        " from token_tracking_raw.usage_events"
    )
    assert row == (
        *("acme", 12, "embedding", "batch", "m, with comma", "agent", "c", 'say "x"', 4, 7),
        {"document_ids": ["a", "b"], "share": 0.5, "text": "ü\n"},
        datetime(2025, 3, 4, 3, 6, 7, 123456, UTC),
    )


def test_empty_cells_are_absent(database, write):
    load(database, write("input_tokens,model,agent_id,metadata,occurred_at\n3,,,,\n , ,,,\n"))
    [first, second] = database.rows(
        "select input_tokens, model, agent_id, metadata, tokens"
        " from token_tracking_raw.usage_events order by input_tokens"
    )
    assert first == (3, None, None, {}, 3)
    assert second == (None, " ", None, {}, 0)


@pytest.mark.parametrize(
    ("field", "cell", "reason"),
    [
        ("tokens", "12.5", "tokens: text that is no integer"),
        ("tokens", "1e3", "tokens: text that is no integer"),
        ("tokens", "1_000", "tokens: text that is no integer"),
        ("tokens", "\uff11\uff12", "tokens: text that is no integer"),
        ("tokens", "true", "tokens: text that is no integer"),
        ("tokens", "-5", "tokens: a negative number"),
        ("tokens", "1099511627777", "tokens: a number above the limit"),
        ("tokens", "9" * 5000, "tokens: a number above the limit"),
        ("output_tokens", "0x10", "output_tokens: text that is no integer"),
        ("metadata", "{", "metadata: text that is no JSON"),
        ("metadata", "[1]", "metadata: an array; must be an object"),
        ("metadata", '{"a": NaN}', "metadata: NaN or infinity"),
        ("metadata", "[" * 100_000, "metadata: text that is no JSON"),
        ("metadata", '{"a": "\\ud800"}', "metadata: text with NUL or half of a surrogate pair"),
        ("occurred_at", "yesterday", "occurred_at: text that is no time"),
        ("occurred_at", "2025-02-30 10:00", "occurred_at: a day that no calendar has"),
        ("occurred_at", "1999-12-31 23:59:59", "occurred_at: a time before 2000"),
        ("occurred_at", "2199-01-01 00:00:00", "occurred_at: a time in the future"),
        ("occurred_at", "\uff11999-01-01 00:00", "occurred_at: text that is no time"),
        ("agent_id", "x" * 256, "agent_id: text of 256 characters"),
        ("model", "a\0b", "model: text with NUL"),
    ],
)
def test_a_bad_cell_is_kept_with_its_reason_and_the_others_go_on(
    database, write, field, cell, reason
):
    name = "tokens" if field != "tokens" else "model"
    file = write("")
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([(name, field), ("1", ""), ("2", cell), ("3", "")])
    for _ in range(2):
        report = load(database, file).files[0]
        assert (report.rows, report.refused) == (3, 1)
        assert (report.problems[0].line, report.problems[0].kind) == (3, "rejection")
        assert report.problems[0].reason.startswith(reason)
        assert len(cell) < 4 or cell not in report.problems[0].reason
    [(payload, kept)] = database.rows(REJECTIONS)
    said = cell.replace("\0", "\\u0000")  # what PostgreSQL cannot hold is kept as its escape
    if len(cell) > MAX_KEPT_BYTES:
        said = f'"{cell[:999]} ...'  # the beginning of its JSON text
    assert (payload[field], payload["tenant_id"], kept) == (said, "acme", report.problems[0].reason)
    assert database.value(COUNT) == 2


def test_rows_of_bad_form(database, write):
    text = (
        "tokens,model\n"  # 1
        "1,a\r\n"
        "2\n"  # too few cells
        "\n"
        "3,b,c\n"  # too many
        '4,"two\nlines"\n'  # lines 6 and 7
        '5,"stray\n'  # 8: its quote would swallow the rows after it
        "6,d\n"
        '7,"e" f\n'  # 10
        "8,g"  # no newline at the end
    )
    report = load(database, write(text)).files[0]
    assert counts(report) == (4, 0, 0, 4)
    assert [problem.line for problem in report.problems] == [3, 5, 8, 10]
    assert [tokens for _, tokens, _ in database.rows(EVENTS)] == [1, 4, 6, 8]
    assert [(row["line"], reason) for row, reason in database.rows(REJECTIONS)] == [
        ("2", "line: 1 cells; must be 2 as in the header"),
        ("3,b,c", "line: 3 cells; must be 2 as in the header"),
        ('5,"stray\n', "line: quotes that do not match; must be CSV"),
        ('7,"e" f\n', "line: quotes that do not match; must be CSV"),
    ]
    assert counts(load(database, write(text)).files[0]) == (0, 4, 0, 4)
    assert len(database.rows(REJECTIONS)) == 4


def test_a_last_line_that_is_cut_off_is_refused_and_known_when_it_is_whole(database, write):
    assert counts(load(database, write('tokens,model\n5,a\n7,"b')).files[0]) == (1, 0, 0, 1)
    assert counts(load(database, write('tokens,model\n5,a\n7,"b"\n')).files[0]) == (1, 1, 0, 0)
    cut = '{"tenant_id": "x", "tokens": 3}\n{"tenant_id": "x", "tok'
    report = load(database, write(cut, "a.jsonl"), plan(constants="")).files[0]
    assert counts(report) == (1, 0, 0, 1)
    assert report.problems[0].line == 2
    assert report.problems[0].reason.startswith("line: no JSON at column")


def test_json_lines(database, write):
    lines = [
        '{"tenant_id": "b", "tokens": 1, "occurred_at": "2025-07-01 12:00:00.1234569"}',
        "",
        '{"tenant_id": "b", "input_tokens": 2, "model": null, "idempotency_key": "k"}',
        '{"tenant_id": "b", "tokens": "3"}',
        '{"tenant_id": "b", "tokens": 4, "cost": 1}',
        '{"tenant_id": "b", "tokens": true}',
        '[{"tenant_id": "b", "tokens": 5}]',
        "7",
        '{"tenant_id": "b", "tokens": 9} {"tenant_id": "b"}',
        '{"tenant_id": "b", "tokens": ' + "9" * 5000 + "}",
        '{"tenant_id": "b", "tokens": 10}',
    ]
    file = write("\n".join(lines), "usage.jsonl")
    report = load(database, file, plan(constants="", zone="Europe/Berlin")).files[0]
    assert counts(report) == (3, 0, 0, 7)
    assert [problem.line for problem in report.problems] == [4, 5, 6, 7, 8]
    times = "select occurred_at from token_tracking_raw.usage_events where tokens = 1"
    assert database.value(times) == datetime(2025, 7, 1, 10, 0, 0, 123456, UTC)
    assert [reason.partition(";")[0] for _, reason in database.rows(REJECTIONS)] == [
        "cost: unknown field",
        "line: JSON beyond all limits",
        "line: a number",
        "line: an array",
        "line: no JSON at column 33",
        "tokens: a boolean",
        "tokens: a string",
    ]


def test_json_of_any_depth_is_refused_and_the_others_go_on(database, write):
    """Of some depth Python just reads it, and cannot write it again."""
    lines = ['{"tenant_id": "b", "tokens": 1, "metadata": {"n": [[[[{}], []]]]}}']
    for depth in range(sys.getrecursionlimit() - 700, sys.getrecursionlimit() + 10):
        for start, end in ("[", "]"), ('{"a":', "}"):
            nested = start * depth + "1" + end * depth
            lines.append(f'{{"tenant_id": "b", "tokens": 7, "metadata": {nested}}}')
    lines.append('{"tenant_id": "b", "tokens": 2, "metadata": {"n": "' + "[" * 2000 + '"}}')
    file = write("\n".join(lines), "deep.jsonl")
    report = load(database, file, plan(constants="")).files[0]
    assert counts(report) == (2, 0, 0, len(lines) - 2)


def test_a_constant_holds_over_what_a_row_says(database, write):
    file = write('{"tenant_id": "b", "tokens": 1}\n{"tenant_id": "c", "tokens": 1}\n', "a.ndjson")
    assert counts(load(database, file).files[0]) == (2, 0, 0, 0)
    other = write('{"tokens": 1}\n{"tenant_id": "d", "tokens": 1}\n', "b.ndjson")
    assert counts(load(database, other).files[0]) == (0, 2, 0, 0)
    assert database.rows(EVENTS) == [("acme", 1, None)] * 2
    load(database, write("tenant_id,tokens\nother,2\n"))
    assert database.rows(EVENTS)[-1] == ("acme", 2, None)


def test_bytes_that_are_not_utf8_spoil_their_row_alone(database, write):
    text = "tokens,model,note\n1,caf\u00e9,\u00e9\n".encode() + b"2,caf\xe9,\n3,ok,\xff\n"
    report = load(database, write(text)).files[0]
    assert counts(report) == (2, 0, 0, 1)
    assert report.problems[0].reason == "model: bytes that are not UTF-8; must be UTF-8 text"
    # The byte is there as the escape of half of a surrogate pair.
    [(payload, _)] = database.rows(REJECTIONS)
    assert payload["model"] == r"caf\udce9"


def test_a_byte_order_mark_is_no_part_of_the_first_column(database, write):
    assert load(database, write("\ufefftokens\r\n5\r\n")).files[0].recorded == 1
    line = '\ufeff{"tenant_id": "b", "tokens": 1}\r\n'
    assert load(database, write(line, "a.jsonl")).files[0].recorded == 1


def test_a_line_without_end_is_refused_and_costs_no_memory(database, write):
    endless = "x" * (3 * LONGEST_LINE)
    report = load(database, write(f"tokens,model\n1,{endless}\n2,b\n")).files[0]
    assert counts(report) == (1, 0, 0, 1)
    assert report.problems[0].line == 2
    broken = f'tokens,model\n1,"a\n2,{endless}\n3,b\n'
    assert counts(load(database, write(broken), plan(source="2")).files[0]) == (1, 0, 0, 2)
    [(payload, _)] = [row for row in database.rows(REJECTIONS) if "longer" in row[1]][:1]
    assert len(payload["line"]) == 1000


def test_what_is_not_used_of_a_file_is_said(database, write):
    text = "tokens,modle,note\n1,a,b\n"
    assert load(database, write(text)).files[0].notes == [
        "columns not used: modle, note",
        "no occurred_at: these events count at the time when they are loaded",
    ]
    how = plan("model=modle", "tenant_id=acme,occurred_at=2025-01-01 00:00")
    assert load(database, write(text), how).files[0].notes == ["columns not used: note"]


def test_files_without_rows(database, write):
    assert counts(load(database, write("tokens\n")).files[0]) == (0, 0, 0, 0)
    report = load(database, write("", "empty.jsonl")).files[0]
    assert (counts(report), report.notes) == ((0, 0, 0, 0), ["it is empty"])


@pytest.mark.parametrize(
    ("text", "columns", "constants", "message"),
    [
        ("", "", "tenant_id=a", "is empty: its first line must name the columns"),
        ("tokens\n1\n", "", "", "says no tenant_id"),
        ("a\n1\n", "", "tenant_id=a", "says no tokens"),
        (
            "a,b\n1,2\n",
            "tokens=c",
            "tenant_id=a",
            "has no column 'c' for tokens; its header is: a, b",
        ),
        ("a,a\n1,2\n", "tokens=a", "tenant_id=a", "has more than one column 'a' for tokens"),
        ("a\n1\n", "tokens=a", "tenant_id=a,tokens=3", "tokens is given by --columns and by --set"),
        ('"a\n1\n', "tokens=a", "tenant_id=a", "has no header that can be read"),
        (gzip.compress(b"tokens\n1\n", mtime=0), "", "tenant_id=a", "is compressed"),
        ("tokens\n1\n".encode("utf-16"), "", "tenant_id=a", "is UTF-16 text"),
    ],
)
def test_a_file_that_cannot_be_loaded_stops_all_before_the_first_row(
    database, write, text, columns, constants, message
):
    good = write("tenant_id,tokens,a,b,c\nx,1,1,1,1\n", "good.csv")
    with pytest.raises(LoadError) as caught:
        load(database, [good, write(text)], plan(columns, constants))
    assert message in str(caught.value)
    assert database.value(COUNT) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/usage.csv", "/nowhere/usage.csv cannot be read: no such file or directory"),
        ("/etc", "/etc is a folder"),
        ("/etc/hostname", "its suffix is none of .csv, .jsonl"),
        ("-", "standard input has no suffix"),
    ],
)
def test_a_path_that_is_no_source(path, message):
    with pytest.raises(LoadError) as caught:
        Source.of(path)
    assert message in str(caught.value)


def test_a_file_that_the_system_refuses():
    with pytest.raises(LoadError) as caught:
        Source("/proc/self/mem", Format.CSV).open()
    assert str(caught.value) == "/proc/self/mem cannot be read: input/output error"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tokens", "'tokens' is no field=..."),
        ("token=a", "'token' is no field of an event"),
        ("tokens=a,tokens=b", "tokens is given twice"),
        ("tokens=a,input_tokens=a", "column 'a' is given twice"),
        ("tokens=", "tokens is given nothing"),
    ],
)
def test_columns_that_contradict_each_other(option, message):
    with pytest.raises(LoadError) as caught:
        columns_of([option])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tenant_id=a,gpt-4o", "'gpt-4o' is no field=..."),
        ("modle=a", "'modle' is no field of an event"),
        ("model=a,model=b", "model is given twice"),
        ("tokens=1.5", "tokens: text that is no integer"),
        ("metadata={", "metadata: text that is no JSON"),
        ("idempotency_key=a", "the same for every row"),
    ],
)
def test_constants_that_cannot_be(option, message):
    with pytest.raises(LoadError) as caught:
        constants_of([option], UTC)
    assert message in str(caught.value)


def test_options_with_commas():
    assert columns_of([r"tokens=In\, out,model=m", "agent_id=x"]) == {
        "tokens": "In, out",
        "model": "m",
        "agent_id": "x",
    }
    assert constants_of([r'tenant_id=a\,b,metadata={"x": 1, "tokens=": 2}', "tokens=3"], UTC) == {
        "tenant_id": "a,b",
        "metadata": {"x": 1, "tokens=": 2},
        "tokens": 3,
    }


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2023-11-16 18:15:46.6805900", "UTC", "2023-11-16T18:15:46.680590+00:00"),
        ("2023-11-16 18:15:46.68059099999", "UTC", "2023-11-16T18:15:46.680590+00:00"),
        ("2023-11-16T18:15", "America/New_York", "2023-11-16T23:15:00+00:00"),
        (" 2023-11-16 18:15:46+05:30 ", "America/New_York", "2023-11-16T12:45:46+00:00"),
        ("2023-11-16 18:15:46Z", "America/New_York", "2023-11-16T18:15:46+00:00"),
        # Shown twice by the clocks of Berlin: the first of the two, in summer time.
        ("2025-10-26 02:30:00", "Europe/Berlin", "2025-10-26T00:30:00+00:00"),
        # Skipped by them: the offset before the change, so an hour later.
        ("2025-03-30 02:30:00", "Europe/Berlin", "2025-03-30T01:30:00+00:00"),
    ],
)
def test_times(text, zone, expected):
    instant = instant_of(text, zone_of(zone))
    assert isinstance(instant, datetime)
    assert instant.astimezone(UTC).isoformat() == datetime.fromisoformat(expected).isoformat()


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "", "/etc/localtime"])
def test_a_time_zone_that_nobody_knows(name):
    with pytest.raises(LoadError, match="is no time zone"):
        zone_of(name)
    assert zone_of("utc") is UTC
    assert zone_of("Europe/Berlin") == ZoneInfo("Europe/Berlin")


def test_ordinals_are_the_same_in_memory_and_in_the_file():
    chance = random.Random(5)
    rows = [chance.randrange(-(2**63), -(2**63) + 300) for _ in range(5000)]
    seen: Counter[int] = Counter()
    expected: list[int] = []
    for row in rows:
        expected.append(seen[row])
        seen[row] += 1
    for most in (10, 100, 100_000):
        with Ordinals(most) as ordinals:
            got = [
                n for start in range(0, 5000, 70) for n in ordinals.take(rows[start : start + 70])
            ]
        assert got == expected, most


def test_a_statement_has_at_most_500_rows_and_a_mebibyte(database, write, monkeypatch):
    sizes: list[tuple[int, int]] = []
    record = TokenDatabase.record

    def spy(self, payload):
        sizes.append((len(json.loads(payload)), len(payload)))
        return record(self, payload)

    monkeypatch.setattr(TokenDatabase, "record", spy)
    small = write("".join(f'{{"tokens": {n}}}\n' for n in range(1250)), "small.jsonl")
    large = write(
        "".join(
            json.dumps({"tokens": n, "metadata": {"x": "y" * 16_000}}) + "\n" for n in range(200)
        ),
        "large.jsonl",
    )
    assert [file.recorded for file in load(database, [small, large]).files] == [1250, 200]
    assert [rows for rows, _ in sizes[:3]] == [500, 500, 250]
    assert len(sizes) == 7
    assert max(size for _, size in sizes) <= 1024 * 1024


def test_a_lost_connection_loses_no_row_and_counts_none_twice(database, write):
    text = "tokens\n" + "".join(f"{n}\n" for n in range(20_000))
    breaks = iter(range(3))

    def break_it(_: int) -> None:
        if next(breaks, None) is not None:
            database.rows(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'token-tracking' and datname = current_database()"
            )

    report = load(database, write(text), on_progress=break_it).files[0]
    assert report.recorded + report.known == 20_000
    assert report.sent_again > 0
    assert database.value(COUNT) == 20_000


def test_events_are_not_sent_again_for_rejections_that_were_lost(database, write, monkeypatch):
    reject = TokenDatabase.reject
    broken = iter([True])

    def lose_the_first(self, payload, reason):
        if next(broken, False):
            raise psycopg.OperationalError
        reject(self, payload, reason)

    monkeypatch.setattr(TokenDatabase, "reject", lose_the_first)
    report = load(database, write("tokens\n1\nx\n2\n")).files[0]
    assert (counts(report), report.sent_again) == ((2, 0, 0, 1), 0)
    assert len(database.rows(REJECTIONS)) == 1


def test_a_database_that_stays_away_ends_the_load_and_the_next_one_adds_the_rest(
    database, server, write, monkeypatch
):
    monkeypatch.setattr(sender_module, "BACK_OFF", (0.01, 0.02))
    file = write("tokens\n" + "".join(f"{n}\n" for n in range(5000)))
    name = database.env["PGDATABASE"]

    def allow(connections: bool) -> None:
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as admin:
            admin.execute(f"alter database {name} allow_connections {connections}")

    def cut_off(_: int) -> None:
        allow(False)
        with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )

    broken = Load(plan(), database.url)
    with pytest.raises(psycopg.OperationalError):
        broken.run([Source.of(str(file))], cut_off)
    allow(True)
    committed = database.value(COUNT)
    assert broken.files[0].recorded <= committed < 5000
    assert counts(load(database, file).files[0]) == (5000 - committed, committed, 0, 0)


def test_an_interrupted_load_keeps_what_it_counts(database, write):
    file = write("tokens\n" + "".join(f"{n}\n" for n in range(50_000)))

    def interrupt(_: int) -> None:
        if broken.files[0].recorded:
            raise KeyboardInterrupt

    broken = Load(plan(), database.url)
    with pytest.raises(KeyboardInterrupt):
        broken.run([Source.of(str(file))], interrupt)
    recorded = broken.files[0].recorded
    assert 0 < recorded < 50_000
    assert database.value(COUNT) == recorded
    assert counts(load(database, file).files[0]) == (50_000 - recorded, recorded, 0, 0)


def test_no_value_of_a_row_is_logged(database, write, caplog):
    caplog.set_level("DEBUG")
    load(database, write("tokens,model\n5,secret-model\nsecret-cell,a\n"))
    assert caplog.records
    assert "secret" not in caplog.text


def test_progress_counts_every_byte(database, write):
    seen: list[int] = []
    file = write("tokens\n" + "5\n" * 3000)
    load(database, file, on_progress=seen.append)
    assert sum(seen) == file.stat().st_size


def test_an_event_a_little_ahead_of_the_clock_is_taken(database, write):
    soon = (datetime.now(UTC) + timedelta(minutes=4)).isoformat()
    assert load(database, write(f"tokens,occurred_at\n5,{soon}\n")).files[0].recorded == 1
