"""Loading files: each row counts once and a bad row affects no other, despite interruptions."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.support.loading import COUNT, REAL, load, plan
from token_tracking.client.connection import Connection
from token_tracking.errors import LoadError
from token_tracking.event.fields import EVENT_FIELDS
from token_tracking.event.kept import MAX_KEPT_BYTES
from token_tracking.loading import sender as sender_module
from token_tracking.loading.cells import columns_of, constants_of, instant_of, zone_of
from token_tracking.loading.load import Load
from token_tracking.loading.ordinals import Ordinals
from token_tracking.loading.plan import Plan
from token_tracking.loading.recorded import Alike
from token_tracking.loading.source import LONGEST_LINE, Format, Source
from token_tracking.loading.undo import Undo
from token_tracking.refresh.project import Warehouse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.databases import Database
    from token_tracking.loading.sender import FileReport
    from token_tracking.loading.source import Lines

EVENTS = "select tenant_id, tokens, model from token_tracking_raw.usage_events order by 1, 2"
REJECTIONS = (
    "select payload, reason from token_tracking_raw.usage_event_rejections order by 2, 1::text"
)


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
def test_a_real_trace_reaches_the_monthly_totals_once(database, tmp_path):
    how = plan(
        "occurred_at=TIMESTAMP,input_tokens=ContextTokens,output_tokens=GeneratedTokens",
        "tenant_id=acme,model=gpt-4o",
        is_whole=True,  # its last line has no line end
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


def test_equal_rows_are_known_in_another_form(database, write):
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
    assert "model: different from the event recorded" in again.problems[0].reason
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
        "cache_read_tokens": "1",
        "cache_write_tokens": " 3",
        "cache_write_long_tokens": "2",
        "reasoning_tokens": "7",
        "provider": " OpenAI",
        "service_tier": "Batch ",
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
        " collection_id, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,"
        " cache_write_long_tokens, reasoning_tokens, provider, service_tier, metadata, occurred_at"
        " from token_tracking_raw.usage_events"
    )
    assert {*values, "idempotency_key"} == set(EVENT_FIELDS)
    assert row == (
        *("acme", 12, "embedding", "batch", "m, with comma", "agent", "c", 'say "x"', 4, 7),
        *(1, 3, 2, 7, "openai", "batch"),
        {"document_ids": ["a", "b"], "share": 0.5, "text": "ü\n"},
        datetime(2025, 3, 4, 3, 6, 7, 123456, UTC),
    )


def test_columns_of_another_name_are_kinds_of_tokens(database, write):
    text = "prompt,cached,completion,thoughts\n10,4,3,1\n10,11,3,0\n5,,2,\n"
    how = plan(
        "input_tokens=prompt,cache_read_tokens=cached,output_tokens=completion,"
        "reasoning_tokens=thoughts",
        "tenant_id=acme,provider=openai,service_tier=flex",
    )
    report = load(database, write(text), how).files[0]
    assert (report.rows, report.refused) == (3, 1)
    assert [problem.reason for problem in report.problems] == [
        "input_tokens: less than cache_read_tokens + cache_write_tokens; must be at least as many"
    ]
    assert database.rows(
        "select tokens, cache_read_tokens, reasoning_tokens, provider, service_tier"
        " from token_tracking_raw.usage_events order by tokens"
    ) == [(7, None, None, "openai", "flex"), (13, 4, 1, "openai", "flex")]


def test_empty_cells_are_absent(database, write):
    columns = "input_tokens,output_tokens,model,agent_id,metadata,occurred_at"
    load(database, write(f"{columns}\n3,,,,,\n ,0, ,,,\n"))
    [first, second] = database.rows(
        "select input_tokens, model, agent_id, metadata, tokens"
        " from token_tracking_raw.usage_events order by input_tokens"
    )
    assert first == (3, None, None, {}, 3)
    assert second == (None, None, None, {}, 0)


def test_an_empty_total_is_no_number(database, write):
    report = load(database, write("tokens,model\n,a\n0,b\n ,c\n")).files[0]
    assert (report.rows, report.refused) == (3, 2)
    assert {problem.reason.partition(",")[0] for problem in report.problems} == {"tokens: missing"}
    assert database.value(COUNT) == 1


@pytest.mark.parametrize(
    ("field", "cell", "reason"),
    [
        ("tokens", "12.5", "tokens: text that is not an integer"),
        ("tokens", "1e3", "tokens: text that is not an integer"),
        ("tokens", "1_000", "tokens: text that is not an integer"),
        ("tokens", "\uff11\uff12", "tokens: text that is not an integer"),
        ("tokens", "true", "tokens: text that is not an integer"),
        ("tokens", "-5", "tokens: a negative number"),
        ("tokens", "1099511627777", "tokens: a number above the limit"),
        ("tokens", "9" * 5000, "tokens: a number above the limit"),
        ("output_tokens", "0x10", "output_tokens: text that is not an integer"),
        ("metadata", "{", "metadata: text that is not JSON"),
        ("metadata", "[1]", "metadata: an array; must be an object"),
        ("metadata", '{"a": NaN}', "metadata: NaN or infinity"),
        ("metadata", "[" * 100_000, "metadata: text that is not JSON"),
        ("metadata", '{"a": "\\ud800"}', "metadata: text with NUL or half of a surrogate pair"),
        ("occurred_at", "yesterday", "occurred_at: not a valid time"),
        ("occurred_at", "2025-02-30 10:00", "occurred_at: not a valid date"),
        ("occurred_at", "1999-12-31 23:59:59", "occurred_at: a time before 2000"),
        ("occurred_at", "2199-01-01 00:00:00", "occurred_at: a time in the future"),
        ("occurred_at", "\uff11999-01-01 00:00", "occurred_at: not a valid time"),
        ("agent_id", "x" * 256, "agent_id: text of 256 characters"),
        ("model", "a\0b", "model: text with NUL"),
    ],
)
def test_a_bad_cell_is_kept_with_its_reason(database, write, field, cell, reason):
    name = "tokens" if field != "tokens" else "output_tokens"
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
    whole = plan(is_whole=True)
    report = load(database, write(text), whole).files[0]
    assert counts(report) == (4, 0, 0, 4)
    assert [problem.line for problem in report.problems] == [3, 5, 8, 10]
    assert [tokens for _, tokens, _ in database.rows(EVENTS)] == [1, 4, 6, 8]
    assert [(row["line"], reason) for row, reason in database.rows(REJECTIONS)] == [
        ("2", "line: 1 cells; must be 2 as in the header"),
        ("3,b,c", "line: 3 cells; must be 2 as in the header"),
        ('5,"stray\n', "line: quotes that do not match; must be CSV"),
        ('7,"e" f\n', "line: quotes that do not match; must be CSV"),
    ]
    assert counts(load(database, write(text), whole).files[0]) == (0, 4, 0, 4)
    assert len(database.rows(REJECTIONS)) == 4


@pytest.mark.parametrize(
    ("part", "rest"),
    [
        ("2026-05-01T10:01:00Z,grow,12", "34"),
        ("2026-05-01T10:01:00Z,gr", "ow,1234"),
        ('2026-05-01T10:01:00Z,grow,"12', '34"'),
        ('"2026-05-01T10:01:00Z', '",grow,1234'),
        ("2026-05-01T10:01:00Z,grow,1234", ""),
    ],
)
def test_a_half_written_last_line_waits(database, write, part, rest):
    log = "occurred_at,tenant_id,tokens\n2026-05-01T10:00:00Z,grow,5\n"
    report = load(database, write(log + part), plan(constants="")).files[0]
    assert (counts(report), report.unread) == ((1, 0, 0, 0), 3)
    whole = log + part + rest + "\n"
    report = load(database, write(whole), plan(constants="")).files[0]
    assert (counts(report), report.unread) == ((1, 1, 0, 0), None)
    assert [tokens for _, tokens, _ in database.rows(EVENTS)] == [5, 1234]
    assert not database.rows(REJECTIONS)


def test_a_cut_utc_offset_is_no_event(database, write):
    log = "tenant_id,tokens,occurred_at\nx,5,2026-05-01T10:01:00"
    load(database, write(log), plan(constants=""))
    load(database, write(log + "+02:00\n"), plan(constants=""))
    times = "select occurred_at from token_tracking_raw.usage_events"
    assert database.rows(times) == [(datetime(2026, 5, 1, 8, 1, tzinfo=UTC),)]


def test_a_half_written_quoted_text_gives_no_rows(database, write):
    """The record's inner lines look like rows, whether the file ends within one or after one."""
    log = 'tokens,model\n5,a\n7,"b\n6,c\n'
    for text in (log, log + "8,d"):
        report = load(database, write(text)).files[0]
        assert (report.rows, report.unread) == (1, 3)
    assert counts(load(database, write(log + '8,d"\n')).files[0]) == (1, 1, 0, 0)
    assert [tokens for _, tokens, _ in database.rows(EVENTS)] == [5, 7]


def test_the_word_that_a_file_is_complete_takes_its_last_line(database, write):
    report = load(database, write("tokens\n5\n7"), plan(is_whole=True)).files[0]
    assert (counts(report), report.unread) == ((2, 0, 0, 0), None)
    cut = write('{"tokens": 3}\n{"tok', "a.jsonl")
    report = load(database, cut, plan(is_whole=True)).files[0]
    assert counts(report) == (1, 0, 0, 1)
    assert report.problems[0].reason.startswith("line: no JSON at column")


def test_a_whole_object_needs_no_line_end(database, write):
    """No prefix of a JSON object is an object, so nothing can be missing."""
    line = '{"tenant_id": "x", "tokens": 3}'
    report = load(database, write(line, "a.jsonl"), plan(constants="")).files[0]
    assert (counts(report), report.unread) == ((1, 0, 0, 0), None)
    grown = line + '\n{"tenant_id": "x", "tokens": 4'
    report = load(database, write(grown, "a.jsonl"), plan(constants="")).files[0]
    assert (counts(report), report.unread) == ((0, 1, 0, 0), 2)
    assert not database.rows(REJECTIONS)


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
    """At some depth, Python can just read it, but cannot write it again."""
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
    # The byte is kept as the escape of a lone surrogate.
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
def test_a_bad_file_stops_all_before_the_first_row(
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
        ("/etc/hostname", "its suffix is not one of .csv, .jsonl"),
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
        ("tokens", "'tokens' is not of the form field=..."),
        ("token=a", "'token' is not a field of an event"),
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
        ("tenant_id=a,gpt-4o", "'gpt-4o' is not of the form field=..."),
        ("modle=a", "'modle' is not a field of an event"),
        ("model=a,model=b", "model is given twice"),
        ("tokens=1.5", "tokens: text that is not an integer"),
        ("metadata={", "metadata: text that is not JSON"),
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
        # Occurs twice in Berlin: the first of the two, in summer time.
        ("2025-10-26 02:30:00", "Europe/Berlin", "2025-10-26T00:30:00+00:00"),
        # Skipped in Berlin: read with the offset before the change, so an hour later.
        ("2025-03-30 02:30:00", "Europe/Berlin", "2025-03-30T01:30:00+00:00"),
    ],
)
def test_times(text, zone, expected):
    instant = instant_of(text, zone_of(zone))
    assert isinstance(instant, datetime)
    assert instant.astimezone(UTC).isoformat() == datetime.fromisoformat(expected).isoformat()


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "", "/etc/localtime"])
def test_a_time_zone_that_nobody_knows(name):
    with pytest.raises(LoadError, match="is not a time zone"):
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
    record = Connection.record

    def spy(self, payload):
        sizes.append((len(json.loads(payload)), len(payload)))
        return record(self, payload)

    monkeypatch.setattr(Connection, "record", spy)
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


def test_lost_rejections_send_no_event_again(database, write, monkeypatch):
    reject = Connection.reject
    broken = iter([True])

    def lose_the_first(self, payload, reason):
        if next(broken, False):
            raise psycopg.OperationalError
        reject(self, payload, reason)

    monkeypatch.setattr(Connection, "reject", lose_the_first)
    report = load(database, write("tokens\n1\nx\n2\n")).files[0]
    assert (counts(report), report.sent_again) == ((2, 0, 0, 1), 0)
    assert len(database.rows(REJECTIONS)) == 1


def test_a_load_without_its_database_ends_and_is_completed(database, server, write, monkeypatch):
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


# The identity of rows, and of rows and events that are recorded already.

LOG = (
    "When,Tenant,Tokens,Model,operation\n"
    "2026-05-01T10:00:00Z,acme,7,gpt-4o,chat\n"
    "2026-05-01T11:00:00Z,acme,9,,query\n"
)
BASE = "occurred_at=When,tenant_id=Tenant,tokens=Tokens"


def as_recorded_before(database: Database, rows: Sequence[dict[str, str]], **event: object) -> None:
    """Record rows like the first version of this package, whose key is written out by hand."""
    seen: Counter[str] = Counter()
    events = []
    for row in rows:
        text = json.dumps(["", row], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        key = sha256(f"{text}#{seen[text]}".encode()).hexdigest()
        seen[text] += 1
        fields = {name: int(value) if name == "tokens" else value for name, value in row.items()}
        events.append({**fields, **event, "idempotency_key": key})
    query = "select recorded from token_tracking_raw.track_token_usage_batch(%s)"
    assert database.value(query, (json.dumps(events),)) == len(events)


@pytest.mark.parametrize(
    ("again", "columns", "name"),
    [
        (LOG, f"{BASE},model=Model", "z.csv"),
        (LOG.replace(",7,", ",07,"), BASE, "z.csv"),
        (LOG.replace(":00Z", ":00.000Z"), BASE, "z.csv"),
        (LOG.replace("Z,", "+00:00,"), BASE, "z.csv"),
        (LOG.replace(",acme,", ", acme,").replace(",7,", ", 7 ,"), BASE, "z.csv"),
        (
            '{"tenant_id":"acme","tokens":7,"occurred_at":"2026-05-01T10:00:00Z"}\n'
            '{"tenant_id":"acme","input_tokens":9,"occurred_at":"2026-05-01T11:00:00Z"}\n',
            "",
            "z.jsonl",
        ),
    ],
)
def test_a_row_in_another_form_stops_the_load(database, write, again, columns, name):
    base = LOG.replace("operation", "op")
    assert counts(load(database, write(base), plan(BASE, "")).files[0]) == (2, 0, 0, 0)
    file = write(again.replace("operation", "op"), name)
    with pytest.raises(LoadError, match="recorded already under another key") as caught:
        load(database, file, plan(columns, ""))
    assert caught.value.line == (1 if name.endswith("l") else 2)
    assert database.value(COUNT) == 2


def test_an_added_column_named_like_a_field_stops_the_load(database, write):
    load(database, write(LOG.replace("operation", "op")), plan(BASE, ""))
    with pytest.raises(LoadError, match="recorded already"):
        load(database, write(LOG), plan(BASE, ""))
    assert database.value(COUNT) == 2


def test_a_part_that_was_not_told_before_stops_the_load(database, write):
    text = "occurred_at,tenant_id,In,Out\n2026-05-01T10:00:00Z,acme,7,3\n"
    load(database, write(text), plan("input_tokens=In", ""))
    with pytest.raises(LoadError, match="recorded already"):
        load(database, write(text), plan("input_tokens=In,output_tokens=Out", ""))
    assert database.value("select sum(tokens) from token_tracking_raw.usage_events") == 7


def test_a_grown_file_in_another_form_can_go_on(database, write):
    # The second row names no model, so its key is the same.
    load(database, write(LOG), plan(BASE, ""))
    grown = write(LOG + "2026-05-01T12:00:00Z,acme,1,m,chat\n")
    how = plan(f"{BASE},model=Model", "")
    for expected in ((1, 2, 0, 0), (0, 3, 0, 0)):
        done = Load(how, database.url, Alike.SKIP)
        done.run([Source.of(str(grown))])
        assert (counts(done.files[0]), done.files[0].alike) == (expected, 1)
    assert database.value("select sum(tokens) from token_tracking_raw.usage_events") == 17
    done = Load(how, database.url, Alike.RECORD)
    done.run([Source.of(str(grown))])
    assert (counts(done.files[0]), done.files[0].alike) == ((1, 2, 0, 0), 1)


def skipping(database: Database, file: Path, how: Plan) -> FileReport:
    done = Load(how, database.url, Alike.SKIP)
    done.run([Source.of(str(file))])
    return done.files[0]


def test_one_recorded_event_stands_for_one_row(database, write):
    """The rows beyond that number are recorded, and another load of the file adds nothing."""
    head, at = "occurred_at,tenant_id,tokens,model", "2026-03-01T10:00:00Z,acme,100,m"
    load(database, write(f"{head}\n{at}\n"), plan(constants=""))
    rows = f"{at},chat\n{at},chat\n{at},summarize\n"
    file = write(f"{head},operation\n{rows}", "grown.csv")
    with pytest.raises(LoadError, match=r"line 2: recorded already .* and tokens, as where"):
        load(database, file, plan(constants=""))
    for expected in ((2, 1, 0, 0), (0, 3, 0, 0)):
        report = skipping(database, file, plan(constants=""))
        assert (counts(report), report.alike) == (expected, 1)
    assert counted(database) == 300


def test_rows_pair_with_events_across_slices(database, write):
    """Also if equal rows of the file, known by their keys, are in other slices."""
    at = "2026-03-01T10:00:00Z,acme,100"
    between = [f"2026-03-01T11:00:00Z,acme,{n}" for n in range(1, 1200)]
    head = "occurred_at,tenant_id,tokens"
    load(database, write("\n".join([head, at, at, ""])), plan(constants=""))
    log = [f"{row},m" for row in (at, *between, at, at, *between, at)]
    text = "\n".join([f"{head},model", *log, ""])
    for expected in ((2400, 2, 0, 0), (0, 2402, 0, 0)):
        report = skipping(database, write(text, "grown.csv"), plan(constants=""))
        assert (counts(report), report.alike) == (expected, 2)
    report = skipping(database, write(f"{text}{at},m\n", "grown.csv"), plan(constants=""))
    assert (counts(report), report.alike) == ((1, 2402, 0, 0), 2)


def test_a_file_is_read_as_often_however_much_of_it_is_alike(
    database: Database, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    head = "occurred_at,tenant_id,tokens"
    rows = [f"2026-03-01T10:{n // 60:02}:{n % 60:02}Z,acme,{n}" for n in range(1, 2001)]
    load(database, write("\n".join([head, *rows, ""])), plan(constants=""))
    opened: list[Source] = []
    open_source = Source.open

    def noted(source: Source) -> Lines:
        opened.append(source)
        return open_source(source)

    monkeypatch.setattr(Source, "open", noted)
    times: list[int] = []
    for most in (100, 2000):  # of one slice, and of four
        grown = write("\n".join([f"{head},model", *(f"{row},m" for row in rows[:most]), ""]))
        opened.clear()
        report = skipping(database, grown, plan(constants=""))
        assert (counts(report), report.alike) == ((0, most, 0, 0), most)
        times.append(len(opened))
    assert times[0] == times[1] > 1


def test_a_row_pairs_with_the_event_that_says_most_of_it(database, write):
    """So a row with fewer values does not use up the event of a row with more."""
    head, at = "occurred_at,tenant_id,tokens,model,agent_id", "2026-03-01T10:00:00Z,acme,100"
    load(database, write(f"{head}\n{at},a,\n{at},b,g\n"), plan(constants=""))
    file = write(f"{head}\n{at},,g\n{at},a,g\n", "grown.csv")
    report = skipping(database, file, plan(constants=""))
    assert (counts(report), report.alike) == ((0, 2, 0, 0), 2)


@pytest.mark.parametrize(
    ("before", "now", "is_alike"),
    [
        ({"operation": "chat"}, {"operation": "summarize"}, False),
        ({"operation": "chat"}, {}, True),
        ({"model": "a"}, {"model": "b"}, False),
        ({"metadata": {"a": 1}}, {"metadata": {"a": 2}}, False),
        ({"metadata": {"a": 1}}, {"metadata": {"a": 1, "b": 2}}, True),
        ({"metadata": {"a": 1}}, {}, True),
    ],
)
def test_what_both_rows_name_is_equal_where_they_are_alike(database, write, before, now, is_alike):
    fields = {"tenant_id": "acme", "tokens": 7, "occurred_at": "2026-03-01T10:00:00Z"}
    load(database, write(json.dumps(fields | before) + "\n", "a.jsonl"), plan(constants=""))
    file = write(json.dumps(fields | now | {"agent_id": "x"}) + "\n", "b.jsonl")
    assert skipping(database, file, plan(constants="")).alike == is_alike


def test_other_calls_at_the_same_time_are_new(database, write):
    """Another tenant, model, agent or number at the same instant is another call."""
    head = "occurred_at,tenant_id,tokens,model,agent_id\n"
    load(database, write(head + "2026-05-01T10:00:00Z,acme,7,a,x\n"), plan(constants=""))
    rows = ["globex,7,a,x", "acme,8,a,x", "acme,7,b,x", "acme,7,a,y"]
    text = head + "".join(f"2026-05-01T10:00:00Z,{row}\n" for row in rows)
    assert counts(load(database, write(text), plan(constants="")).files[0]) == (4, 0, 0, 0)


def test_equal_rows_of_a_grown_file_are_new(database, write):
    """Also with thousands of rows between them, and if one has fewer values than the other."""
    head = "occurred_at,tenant_id,tokens,model\n"
    row = "2026-05-01T10:00:00Z,acme,7,a\n"
    between = "".join(f"2026-05-01T11:00:00Z,acme,{n},a\n" for n in range(1, 1200))
    log = head + row + row + between
    assert counts(load(database, write(log), plan(constants="")).files[0]) == (1201, 0, 0, 0)
    grown = log + row + "2026-05-01T10:00:00Z,acme,7,\n"
    assert counts(load(database, write(grown), plan(constants="")).files[0]) == (2, 1201, 0, 0)


def test_a_source_is_the_word_that_equal_rows_are_two(database, write):
    load(database, write(LOG), plan(BASE, "", source="east"))
    report = load(database, write(LOG), plan(BASE, "", source="west")).files[0]
    assert (counts(report), report.alike) == ((2, 0, 0, 0), 2)


def test_two_files_of_one_load_are_compared(database, write):
    csv_text = "occurred_at,tenant_id,tokens\n2026-05-01T10:00:00Z,acme,7\n"
    lines = '{"tenant_id":"acme","tokens":7,"occurred_at":"2026-05-01T10:00:00Z"}\n'
    with pytest.raises(LoadError, match=r"b.jsonl, line 1: recorded already"):
        load(database, [write(csv_text, "a.csv"), write(lines, "b.jsonl")], plan(constants=""))


def test_a_file_that_an_earlier_version_loaded_is_known(database, write):
    row = {"occurred_at": "2026-05-01T10:00:00Z", "tokens": "07", "model": " gpt"}
    as_recorded_before(database, [row, row], tenant_id="acme", model="gpt")
    text = "occurred_at,tokens,model\n" + "2026-05-01T10:00:00Z,07, gpt\n" * 3
    assert counts(load(database, write(text)).files[0]) == (1, 2, 0, 0)
    assert database.value(COUNT) == 3


def test_kept_ids_with_outer_space_stop_the_load(database, write):
    query = "select recorded from token_tracking_raw.track_token_usage_batch(%s)"
    when = "2026-05-01T10:00:00Z"
    old = [
        {"tenant_id": " acme", "tokens": 5, "occurred_at": when},
        {"tenant_id": "acme", "tokens": 6, "occurred_at": when, "idempotency_key": " k1"},
    ]
    assert database.value(query, (json.dumps(old),)) == 2
    for row in (" acme, 5,", "acme, 6, k1"):
        text = f"occurred_at,tenant_id,tokens,idempotency_key\n{when},{row}\n"
        with pytest.raises(LoadError, match="recorded already"):
            load(database, write(text), plan(constants=""))
    # A row with another key of its own is another call.
    text = f"occurred_at,tenant_id,tokens,idempotency_key\n{when},acme,6,k2\n"
    assert counts(load(database, write(text), plan(constants="")).files[0]) == (1, 0, 0, 0)


def test_a_raw_schema_of_before_is_loaded_as_before(database, write):
    with closing(database.connect()) as connection:
        connection.execute(
            "drop function token_tracking_raw.has_usage_between, token_tracking_raw.recorded_usage"
        )
    assert counts(load(database, write(LOG), plan(BASE, "")).files[0]) == (2, 0, 0, 0)
    report = load(database, write(LOG), plan(BASE, "")).files[0]
    assert counts(report) == (0, 2, 0, 0)
    assert any("schema apply" in note for note in report.notes)


def test_a_known_row_with_another_time_is_told(database, write):
    file = write(LOG.replace("Z", ""))
    load(database, file, plan(BASE, ""))
    done = load(database, file, plan(BASE, "", zone="America/New_York"))
    report = done.files[0]
    assert (counts(report), report.other_times, done.has_problems) == ((0, 2, 0, 0), 2, True)
    assert report.first_other_time == (
        "line 2: 2026-05-01T10:00:00+00:00 recorded, 2026-05-01T14:00:00+00:00 in the file"
    )
    same = load(database, file, plan(BASE, ""))
    assert (same.files[0].other_times, same.has_problems) == (0, False)


def test_a_call_with_a_slightly_different_time_is_told(database, write):
    """The row's key says that it is the same call, and a retry may have another time."""
    head = "idempotency_key,tokens,occurred_at\n"
    load(database, write(head + "k,5,2026-05-01T10:00:00.1Z\n"))
    done = load(database, write(head + "k,5,2026-05-01T10:00:00Z\n"))
    assert (done.files[0].other_times, done.has_problems) == (1, False)


def counted(database: Database) -> object:
    return database.value(
        "select coalesce(sum(tokens), 0)::int from token_tracking_raw.usage_events as event"
        " where not exists (select from token_tracking_raw.usage_voids as void"
        " where (void.tenant_id, void.idempotency_key) = (event.tenant_id, event.idempotency_key))"
    )


def undo(database: Database, file: Path, how: Plan, *, is_trial: bool = False) -> tuple[int, ...]:
    undone = Undo(how, database.url)
    undone.run([Source.of(str(file))], "wrong zone", is_trial=is_trial)
    return tuple(undone.files[str(file)])


def test_a_load_is_taken_back_and_done_right(database, write):
    kept = write("occurred_at,tenant_id,tokens\n2026-05-01T10:00:00,acme,100\n", "kept.csv")
    load(database, kept, plan(constants=""))
    file = write(LOG.replace("Z", "") + "2026-05-01T11:00:00,acme,9,,query\n")
    wrong = plan(BASE, "")
    right = plan(BASE, "", zone="America/New_York", source="2")
    load(database, file, wrong)
    assert undo(database, file, wrong, is_trial=True) == (3, 0, 0, 0)
    assert counted(database) == 125
    assert undo(database, file, wrong) == (3, 0, 0, 0)
    assert undo(database, file, wrong) == (0, 3, 0, 0)
    assert counted(database) == 100
    assert database.rows("select distinct reason from token_tracking_raw.usage_voids") == [
        ("wrong zone",)
    ]
    again = load(database, file, wrong).files[0]
    assert (counts(again), again.voided) == ((0, 3, 0, 0), 3)
    assert counts(load(database, file, right).files[0]) == (3, 0, 0, 0)
    assert counts(load(database, file, right).files[0]) == (0, 3, 0, 0)
    assert counted(database) == 125


def test_undo_with_other_options_or_files_voids_nothing(database, write):
    file = write(LOG.replace("Z", ""))
    load(database, file, plan(BASE, ""))
    keyed = "idempotency_key,tokens,occurred_at\nk,5,2026-05-01T10:00:00Z\n"
    load(database, write(keyed, "k.csv"))
    assert undo(database, file, plan(BASE, "", zone="Asia/Kolkata")) == (0, 0, 2, 0)
    other_tenant = plan(BASE.replace("tenant_id=Tenant,", ""), "tenant_id=other")
    assert undo(database, file, other_tenant) == (0, 0, 0, 2)
    assert undo(database, file, plan(BASE, "", source="x")) == (0, 0, 0, 2)
    other = write("idempotency_key,tokens,occurred_at\nk,5,2026-05-01T10:00:01Z\n", "k.csv")
    assert undo(database, other, plan()) == (0, 0, 1, 0)
    assert counted(database) == 21


def test_undo_of_rows_without_a_time(database, write):
    file = write("tokens\n5\n5\n7\n")
    load(database, file)
    assert undo(database, file, plan()) == (3, 0, 0, 0)
    assert counted(database) == 0


def test_undo_of_a_load_that_was_interrupted(database, write):
    file = write("tokens\n" + "".join(f"{n}\n" for n in range(1, 1201)))
    load(database, write("tokens\n" + "".join(f"{n}\n" for n in range(1, 701)), "part.csv"))
    assert undo(database, file, plan()) == (700, 0, 0, 500)
    assert counted(database) == 0


def test_undo_that_was_interrupted_goes_on(database, write):
    file = write("tokens\n" + "".join(f"{n}\n" for n in range(1, 1201)))
    load(database, file)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    undone = Undo(plan(), database.url)
    with pytest.raises(KeyboardInterrupt):
        undone.run([Source.of(str(file))], "wrong", interrupt)
    assert undone.files[str(file)] == (500, 0, 0, 0)
    assert database.value("select count(*) from token_tracking_raw.usage_voids") == 500
    assert undo(database, file, plan()) == (700, 500, 0, 0)
    assert counted(database) == 0


def test_undo_of_a_file_loaded_twice(database, write):
    """In two forms: rows that were left out as alike are of the load that recorded them."""
    file = write(LOG)
    first, second = plan(BASE, ""), plan(f"{BASE},model=Model", "")
    load(database, file, first)
    load(database, file, first)
    skipping = Load(second, database.url, Alike.SKIP)
    skipping.run([Source.of(str(file))])
    assert skipping.files[0].alike == 1
    # The other row names no model, so that it has the same key in both forms.
    assert undo(database, file, second, is_trial=True) == (1, 0, 0, 1)
    assert undo(database, file, first) == (2, 0, 0, 0)
    assert counted(database) == 0


def test_undo_of_rows_in_another_order_and_file(database, write):
    first = load(database, write("tokens,model\n5,a\n7,b\n5,a\n")).files[0]
    assert first.recorded == 3
    shuffled = write("Model,spent\nb,7\na,5\na,5\n", "other.csv")
    assert undo(database, shuffled, plan("tokens=spent,model=Model")) == (3, 0, 0, 0)
    assert counted(database) == 0


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", "", "is empty: its first line must name the columns"),
        ("a,b\n1,2\n", "tokens=c", "has no column 'c' for tokens"),
    ],
)
def test_undo_of_a_file_that_cannot_be_loaded_voids_nothing(
    database, write, text, columns, message
):
    good = write("tokens,c\n5,6\n", "good.csv")
    load(database, good, plan(columns))
    with pytest.raises(LoadError, match=message):
        Undo(plan(columns), database.url).run(
            [Source.of(str(good)), Source.of(str(write(text)))], "wrong"
        )
    assert database.value("select count(*) from token_tracking_raw.usage_voids") == 0
    assert undo(database, write("", "empty.jsonl"), plan()) == (0, 0, 0, 0)


def test_undo_needs_the_raw_schema_of_this_version(database, write):
    file = write("tokens\n5\n")
    load(database, file)
    with closing(database.connect()) as connection:
        connection.execute("drop function token_tracking_raw.void_recorded_usage")
    with pytest.raises(LoadError, match="schema apply"):
        undo(database, file, plan())
    assert counted(database) == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "tokens,model\n,a\n0,b\n"),
        ("b.csv", "tokens,input_tokens,model\n ,,a\n,0,b\n"),
        ("c.jsonl", '{"model": "a"}\n{"model": "b", "output_tokens": 0}\n'),
        ("d.jsonl", '{"model": "a", "tokens": null}\n{"model": "b", "tokens": 0}\n'),
    ],
)
def test_a_row_that_names_no_number_is_refused(database, write, name, text):
    report = load(database, write(text, name)).files[0]
    assert counts(report) == (1, 0, 0, 1)
    assert report.problems[0].line == (2 if name.endswith("csv") else 1)
    assert report.problems[0].reason.startswith("tokens: missing")
    assert database.rows(EVENTS) == [("acme", 0, "b")]


def test_outer_space_of_cells_is_no_part_of_them(database, write):
    text = "tenant_id, idempotency_key, tokens, model, agent_id\n acme, k1, 5,\tm ,a\u00a0\n"
    line = '{"tenant_id": "acme ", "idempotency_key": " k2", "tokens": 6, "agent_id": " a"}\n'
    load(database, [write(text), write(line, "a.jsonl")], plan(constants=""))
    assert database.rows(
        "select tenant_id, idempotency_key, model, agent_id from token_tracking_raw.usage_events"
        " order by 2"
    ) == [("acme", "k1", "m", "a"), ("acme", "k2", None, "a")]


@pytest.mark.parametrize("text", ["nan", "NULL", r"\N", "None", "N/A", "<NA>", " null "])
@pytest.mark.parametrize("field", ["tenant_id", "agent_id", "model", "idempotency_key"])
def test_a_text_that_means_nothing_is_no_name(database, write, text, field):
    values = {"tenant_id": "acme", "tokens": 5, field: text}
    csv_text = ",".join(values) + "\n" + ",".join(map(str, values.values())) + "\n"
    files = [write(csv_text), write(json.dumps(values) + "\n", "a.jsonl")]
    for file in load(database, files, plan(constants="")).files:
        assert counts(file) == (0, 0, 0, 1)
        assert file.problems[0].reason.startswith(f"{field}: text that means a missing value")
    how = plan(constants="", nulls=(text.strip(),))
    expected = (0, 0, 0, 1) if field == "tenant_id" else (1, 0, 0, 0)
    assert counts(load(database, files[0], how).files[0]) == expected
    # With --null for other texts, this one is the name of a tenant.
    named = load(database, files[0], plan(constants="", nulls=("-",), source="2")).files[0]
    assert named.recorded == 1


def test_the_text_of_an_empty_cell_holds_for_every_field(database, write):
    text = "occurred_at,tokens,input_tokens,metadata\n-,5,-,-\n-,-,-,-\n"
    assert counts(load(database, write(text), plan(nulls=("-",))).files[0]) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("field", "text", "is_told"),
    [
        ("tenant_id", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", True),
        ("agent_id", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", True),
        ("tenant_id", "a0eebc999c0b4ef8bb6d6bb9bd380a11", True),
        ("idempotency_key", "urn:uuid:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", True),
        ("idempotency_key", "a0eebc999c0b4ef8bb6d6bb9bd380a11", False),
        ("tenant_id", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", False),
        ("tenant_id", "acme", False),
    ],
)
def test_an_unusual_form_of_a_uuid_is_told(database, write, field, text, is_told):
    values = {"tenant_id": "acme", "tokens": 5, field: text}
    file = write(json.dumps(values) + "\n", "a.jsonl")
    report = load(database, file, plan(constants="")).files[0]
    assert report.recorded == 1
    assert [note.partition(":")[0] for note in report.notes] == [f"{field}, line 1"] * is_told
    assert text not in str(report.notes)
    assert database.rows(f"select {field} from token_tracking_raw.usage_events") == [(text,)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260301T100000Z", "2026-03-01T10:00:00+00:00"),
        ("20260301T100000.5+0530", "2026-03-01T04:30:00.5+00:00"),
        ("2026-03-01t10:00:00z", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01T24:00:00Z", "2026-03-02T00:00:00+00:00"),
        ("2026-02-28 24:00", "2026-02-28T23:00:00+00:00"),
        ("2026-03-01 10:00:00 UTC", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01 10:00:00.123456789 +0000 UTC", "2026-03-01T10:00:00.123456+00:00"),
        ("2026-03-01 10:00:00", "2026-03-01T09:00:00+00:00"),
        ("1772359200", "2026-03-01T10:00:00+00:00"),
        ("1772359200.1234567", "2026-03-01T10:00:00.123456+00:00"),
        ("1772359200500", "2026-03-01T10:00:00.5+00:00"),
        ("946684800", "2000-01-01T00:00:00+00:00"),
    ],
)
def test_times_as_other_programs_write_them(text, expected):
    instant = instant_of(text, zone_of("Europe/Berlin"))
    assert isinstance(instant, datetime)
    assert instant.astimezone(UTC) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "text",
    [
        "20260301",
        "2026-02-30T24:00:00Z",
        "24:00:00",
        "2026-03-01T24:00:01Z",
        "17723592001",
        "12",
        "2026-03-01 10:00:00+02:00 UTC",
        "9999-12-31T24:00:00Z",
    ],
)
def test_texts_that_are_no_times(text):
    assert instant_of(text, UTC) == text


def test_seconds_since_1970_of_json(database, write):
    lines = '{"tokens": 1, "occurred_at": 1772359200}\n{"tokens": 2, "occurred_at": 1772359200.5}\n'
    lines += '{"tokens": 3, "occurred_at": true}\n{"tokens": 4, "occurred_at": 12}\n'
    assert counts(load(database, write(lines, "a.jsonl")).files[0]) == (2, 0, 0, 2)
    assert [
        str(at)
        for (at,) in database.rows(
            "select occurred_at at time zone 'UTC' from token_tracking_raw.usage_events"
            " order by tokens"
        )
    ] == ["2026-03-01 10:00:00", "2026-03-01 10:00:00.500000"]


def test_rows_of_nothing_are_no_rows(database, write):
    text = "tokens,model,agent_id\r\n5,a,\r\n   \r\n,,\r\n , ,\r\n\r\n6,b,\r\n\x1a"
    done = load(database, write(text))
    assert counts(done.files[0]) == (2, 0, 0, 0)
    assert "4 rows of nothing but empty cells" in done.files[0].notes
    assert not done.has_problems
    assert not done.has_unread
    done = load(database, write('{"tokens": 1}\n  \n\x1a', "a.jsonl"))
    assert (counts(done.files[0]), done.has_unread) == ((1, 0, 0, 0), False)
