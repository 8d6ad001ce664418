"""`token-tracking compare`: an older daily table against the totals that dbt built."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing

import pytest

from tests.support.commands import forked_command
from tests.support.databases import Database, fresh_database
from tests.support.project import DbtProject
from token_tracking import UsageTracker

EVENTS = [
    {"tenant_id": tenant, "tokens": tokens, "occurred_at": f"2026-03-0{day}T12:00:00Z"}
    for tenant, tokens, day in (("acme", 5, 1), ("acme", 7, 1), ("acme", 11, 2), ("globex", 13, 2))
] + [{"tenant_id": "idle", "input_tokens": 0, "occurred_at": "2026-03-05T12:00:00Z"}]
COUNTERS = """
    create schema old;
    create table old.usage (tenant uuid, day timestamptz, total numeric);
    create table public.daily (tenant_id text, usage_date date, tokens integer);
    insert into daily values ('acme', '2026-03-01', 12), ('acme', '2026-03-02', 10),
        ('globex', '2026-03-02', 13), ('gone', '2026-03-03', 1);
    create table public.fractions (tenant_id text, usage_date date, tokens numeric(12, 2));
    insert into fractions values ('acme', '2026-03-01', 12.4), ('acme', '2026-03-02', 11);
    create table public.zeros (tenant_id text, usage_date date, tokens integer);
    insert into zeros values ('acme', '2026-03-01', 12), ('acme', '2026-03-02', 11),
        ('acme', '2026-03-03', 0), ('globex', '2026-03-01', 0), ('globex', '2026-03-02', 13),
        ('initech', '2026-03-02', null);
    create table public.dayless (tenant_id text, usage_date date, tokens integer);
    insert into dayless select * from zeros;
    insert into dayless values ('acme', null, 5), ('acme', null, 2), ('globex', 'infinity', 4),
        (null, '2026-03-02', 3), (null, null, 1), ('acme', null, null);
    create table public.alike (tenant_id text, usage_date date, tokens integer);
    insert into alike values ('acme', '2026-03-01', 12), ('Acme ', '2026-03-02', 8),
        (e'ac\\u200bme', '2026-03-02', 3), ('globex', '2026-03-02', 13);
"""


@pytest.fixture(scope="module")
def built(server, tmp_path_factory):
    for database in fresh_database(server):
        with UsageTracker(dsn=database.url) as tracker:
            assert tracker.track_many_sync(EVENTS) == [True] * 5
        with database.connect() as connection:
            connection.execute(COUNTERS)
        project = DbtProject(database.env, tmp_path_factory.mktemp("dbt"))
        result = project.run("run")
        assert result.green, result.said
        yield database


def compare(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*forked_command(), "compare", *arguments],
        env={"PATH": os.environ["PATH"], **database.env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_day_that_differs_is_told_with_both_numbers(built: Database):
    done = compare(built, "--daily", "daily", "--format", "json")
    assert done.returncode == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {
            "tenant_id": "acme",
            "usage_date": "2026-03-02",
            "theirs": 10,
            "ours": 11,
            "difference": 1,
        },
        {
            "tenant_id": "gone",
            "usage_date": "2026-03-03",
            "theirs": 1,
            "ours": None,
            "difference": -1,
        },
    ]
    assert "3 of 5 tenants' days are equal; the others differ by +0 tokens together" in done.stderr


def test_people_get_a_table(built: Database):
    done = compare(built, "--daily", "public.daily", "--since", "2026-03-03")
    assert done.returncode == 1
    assert "gone" in done.stdout
    assert "no row" in done.stdout
    assert "acme" not in done.stdout


def test_equal_days_are_success(built: Database):
    done = compare(built, "--daily", "daily", "--until", "2026-03-02")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 of 1 tenants' days are equal" in done.stderr


def test_no_row_is_as_good_as_no_tokens(built: Database):
    """Also if the marts have the row: an event of 0 tokens makes a row of the day."""
    done = compare(built, "--daily", "zeros")
    assert (done.returncode, done.stdout) == (0, "")
    assert "7 of 7 tenants' days are equal" in done.stderr


def test_rows_without_day_or_tenant_are_counted(built: Database):
    done = compare(built, "--daily", "dayless", "--format", "json")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["usage_date"], row["tenant_id"], row["difference"]) for row in rows] == [
        ("2026-03-02", None, -3),
        (None, "acme", -7),
        (None, "globex", -4),
        (None, None, -1),
    ]
    assert all(row["ours"] is None for row in rows)
    assert "the others differ by -15 tokens together" in done.stderr
    # They belong to no period, so no period excludes them.
    people = compare(built, "--daily", "dayless", "--since", "2026-03-03", "--until", "2026-03-04")
    assert people.returncode == 1
    assert "the others differ by -12 tokens together" in people.stderr
    assert people.stdout.count("no day") == 3
    assert people.stdout.count("no tenant") == 1


def test_tenants_that_look_alike_are_told_apart(built: Database):
    done = compare(built, "--daily", "alike")
    assert done.returncode == 1
    for cell in (r"│ Acme\x20 ", r"│ ac\u200bme ", "│ acme "):
        assert done.stdout.count(cell) == 1, done.stdout
    assert done.stderr.startswith("Warning: these ids look alike, and are counted as different")
    assert "  'acme': 12 tokens in alike, 23 in token_tracking\n" in done.stderr
    assert "  'Acme\\x20': 8 tokens in alike, 0 in token_tracking\n" in done.stderr
    assert "  'ac\\u200bme': 3 tokens in alike, 0 in token_tracking\n" in done.stderr
    assert "globex" not in done.stderr
    assert "look alike" not in compare(built, "--daily", "daily").stderr


def test_other_columns_and_types(built: Database):
    columns = ("--tenant", "tenant", "--day", "day", "--tokens", "total")
    done = compare(built, "--daily", "old.usage", *columns, "--format", "json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    nothing = compare(built, "--daily", "old.usage", *columns, "--since", "2027-01-01")
    assert nothing.returncode == 3
    assert "nothing to compare" in nothing.stderr


def test_a_fraction_is_a_difference(built: Database):
    words = ("--daily", "fractions", "--until", "2026-03-03")
    done = compare(built, *words, "--format", "json")
    assert done.returncode == 1
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["theirs"], first["ours"], first["difference"]) == (12.4, 12, -0.4)
    assert (second["tenant_id"], second["theirs"], second["ours"]) == ("globex", None, 13)
    assert "1 of 3 tenants' days are equal; the others differ by +12.60 tokens" in done.stderr
    assert "12.40" in compare(built, *words).stdout


def test_a_role_that_sees_a_part_is_told_so(built: Database):
    mart = "token_tracking.daily_token_usage"
    with closing(built.connect()) as connection:
        for statement in (
            "create role part login",
            "grant usage on schema token_tracking to part",
            f"grant select on {mart}, daily to part",
            f"alter table {mart} enable row level security",
        ):
            connection.execute(statement)
    try:
        done = compare(Database(built.url, {**built.env, "PGUSER": "part"}), "--daily", "daily")
    finally:
        with closing(built.connect()) as connection:
            connection.execute(f"alter table {mart} disable row level security")
            connection.execute("drop owned by part; drop role part")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "Error: row-level security shows the role 'part' only a part of token_tracking.daily_token"
    )
    assert "token_tracking_analyst" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--daily", "missing"), 'missing: relation "missing" does not exist'),
        (("--daily", "daily", "--day", "date"), "--day and --tokens name its columns"),
        (("--daily", "daily", "--tokens", "tenant_id"), "daily: function sum(text)"),
        (("--daily", "daily", "--schema", "other"), "dbt build makes it"),
        (("--daily", "daily; drop table daily"), "does not exist"),
        (("--daily", "daily", "--since", "yesterday"), "must be a day as 2026-03-01"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    built: Database, arguments: tuple[str, ...], said: str
):
    done = compare(built, *arguments)
    assert done.returncode in {1, 2}
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
