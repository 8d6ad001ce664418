"""Building and reading the marts with real logins, after the first build and after another."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support import ROOT
from tests.support.commands import refresh_once as command
from tests.support.databases import DEBIAN_15, NOT_DURABLE, Database, started_server
from tests.support.logins import DENIED, RAW_TABLES, execute, login, managed_database
from tests.support.oracle import Settings
from tests.support.project import DbtProject
from tests.support.warehouse import NOW, Event, Warehouse
from token_tracking.raw.roles import Roles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from token_tracking.embedded.server import Server

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
FOR_ALL = {
    "usage_events",
    "agent_owner_periods",
    "hourly_token_usage",
    "daily_token_usage",
    "monthly_token_usage",
    "tenant_token_usage",
    "hourly_token_usage_now",
    "daily_token_usage_now",
    "monthly_token_usage_now",
    "daily_agent_token_usage",
    "hourly_token_cost",
    "daily_token_cost",
    "daily_token_cost_now",
    "monthly_token_cost",
    "daily_cache_savings",
    "unpriced_usage",
    "usage_event_costs",
    "unmapped_labels",
    "build_status",
    "usage_days",
}
FOR_TENANTS = {
    "hourly_token_usage",
    "daily_token_usage",
    "monthly_token_usage",
    "hourly_token_usage_now",
    "daily_token_usage_now",
    "monthly_token_usage_now",
    "daily_token_cost",
    "daily_token_cost_now",
    "monthly_token_cost",
    "daily_cache_savings",
    "tenant_token_usage",
    "tenant_agent_token_usage",
}
# Other tenants' numbers and names, which acme must not find anywhere. Two of them used its agent:
# acme sees what it pays for both as one number, and must not be able to split it.
SECRETS = ("secret", "7919", "104729", "1299709", "15485863", "324528")
OTHERS = 1299709 + 15485863
EVENTS = [
    Event("own", NOON, "acme", 10),
    Event("own-agent", NOON, "acme", 1000, agent="acme-agent"),
    Event("1", NOON, "secret-a", 1299709, agent="acme-agent"),
    Event("2", NOON, "secret-c", 15485863, agent="acme-agent"),
    Event("3", NOON, "secret-a", 7919, agent="secret-agent", model="secret-model"),
    Event("4", NOON, "secret-c", 104729, operation="secret-operation"),
    *(
        Event(f"day-{day}", NOON - timedelta(days=day), tenant, 1000 * day)
        for day in range(1, 200)
        for tenant in ("acme", "secret-a")
    ),
]
OWNERS = [
    ("acme-agent", datetime(2025, 1, 1, tzinfo=UTC), "acme"),
    ("secret-agent", datetime(2025, 1, 1, tzinfo=UTC), "secret-a"),
]
TABLES_OF_PRICES = {"model_prices", "model_aliases", "price_list_rules", "tenant_price_lists"}
PRICES = [
    ("list", "gpt-4o", 32452843),  # acme pays by another one
    ("secret-list", "gpt-4o", 32452867),
    ("secret-list", "secret-model", 32452867),
    ("acme-list", "gpt-4o", 2.5),
]
# The logins of docs/roles.md, and some others.
GUIDE = (ROOT / "docs" / "roles.md").read_text("utf-8")
LOGINS_SQL, BACKEND_SQL, ASK_SQL = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
MORE_SQL = """
    create role dbt_plain login in role token_tracking_transformer;
    create role reader_of_nothing login in role token_tracking_tenant_reader;
    insert into token_tracking_raw.tenant_readers values ('somebody', 'secret-a');
"""


def filled_database(servers: Iterator[Server]) -> Iterator[Database]:
    """Create the logins and the raw events on a separate server."""
    script = LOGINS_SQL + BACKEND_SQL + MORE_SQL
    logins = re.findall(r"create role (\w+) login", script)
    for server in servers:
        with managed_database(server, "marts", *logins) as database:
            execute(database, script, user="admin")
            warehouse = Warehouse(database)
            warehouse.insert(EVENTS, owners=OWNERS)
            since: dict[str, object] = {"valid_from": "2026-01-01T00:00Z"}
            warehouse.record(
                "record_model_prices",
                *(
                    {
                        "price_list": name,
                        "provider": "openai",
                        "model": model,
                        "token_kind": kind,
                        "amount": amount,
                        **since,
                    }
                    for name, model, amount in PRICES
                    for kind in ("input", "output")
                ),
            )
            warehouse.record(
                "record_tenant_price_lists",
                {"tenant_id": "secret-a", "price_list": "secret-list", **since},
                {"tenant_id": "acme", "price_list": "acme-list", **since},
            )
            yield database


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    yield from filled_database(started_server(None, NOT_DURABLE))


@pytest.fixture(scope="module")
def built_15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Built once on PostgreSQL 15, which has other plans."""
    if not DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    settings = {**NOT_DURABLE, "shared_preload_libraries": ""}
    for database in filled_database(started_server(DEBIAN_15, settings)):
        project_of(database, "dbt", tmp_path_factory).must("run")
        execute(database, "analyze")
        yield database


def project_of(database: Database, user: str, folder: pytest.TempPathFactory) -> DbtProject:
    return DbtProject({**database.env, "PGUSER": user}, folder.mktemp("dbt"))


@pytest.fixture(scope="module")
def built(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """Built for the first time by a login role that is a member of transformer and nothing else."""
    project_of(database, "dbt_plain", tmp_path_factory).must("build")
    return database


@pytest.fixture(scope="module")
def rebuilt(built: Database, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """Built by another login, with one table recreated after its protection was removed."""
    execute(
        built,
        "reassign owned by dbt_plain to token_tracking_transformer",
        "update token_tracking.build_state set shape = 'of an older version'"
        " where model = 'daily_token_usage'",
        "alter table token_tracking.hourly_token_usage disable row level security",
        "drop policy own_rows on token_tracking.monthly_token_usage",
        "drop policy all_rows on token_tracking.monthly_token_usage",
        "alter view token_tracking.tenant_token_usage reset (security_invoker)",
        "alter view token_tracking.tenant_agent_token_usage reset (security_barrier)",
        "alter view token_tracking.daily_token_usage_now reset (security_barrier)",
        "revoke all on token_tracking.hourly_token_usage, token_tracking.tenant_token_usage"
        " from token_tracking_analyst, token_tracking_tenant_reader",
        "revoke all on schema token_tracking from token_tracking_analyst",
    )
    # Everybody's usage is priced by a list, too, whose name is no tenant's business.
    lists = ["list", "secret-list"]
    project_of(built, "dbt", tmp_path_factory).must("build", "--full-refresh", price_lists=lists)
    return built


@pytest.fixture(scope="module", params=["built", "rebuilt"])
def marts(request: pytest.FixtureRequest) -> Database:
    database = request.getfixturevalue(request.param)
    execute(database, "analyze")
    return database


def relations(database: Database) -> dict[str, str]:
    """Return every table and view of both schemas, with its schema."""
    return dict(
        database.rows(
            "select relname, relnamespace::regnamespace::text from pg_class"
            " where relnamespace::regnamespace::text like 'token_tracking%'"
            " and relkind in ('r', 'v')"
        )
    )


def readable(database: Database, user: str) -> set[str]:
    """Return the relations that a login role can read, by reading them."""
    found = set()
    with closing(login(database, user)) as connection:
        for relation, schema in relations(database).items():
            try:
                connection.execute(f"select * from {schema}.{relation} limit 1")  # type: ignore[arg-type]
                found.add(relation)
            except DENIED:
                pass
    return found


def test_whoever_builds_sees_every_row_and_totals_are_right(
    marts: Database, request: pytest.FixtureRequest
):
    is_rebuilt = "rebuilt" in request.node.callspec.id
    settings = Settings(price_lists=("list", "secret-list")) if is_rebuilt else Settings()
    Warehouse(marts, settings).check()
    [(owner,)] = marts.rows(
        "select relowner::regrole::text from pg_class"
        " where oid = 'token_tracking.daily_token_usage'::regclass"
    )
    for user in ("dbt_plain", "dbt"):
        with closing(login(marts, user)) as connection:
            for mart in ("hourly", "daily", "monthly"):
                query = f"select sum(tokens)::bigint from token_tracking.{mart}_token_usage"
                try:
                    found = connection.execute(query).fetchone()  # type: ignore[arg-type]
                    assert found == (sum(event.tokens for event in EVENTS),)
                except DENIED:
                    # Another member of the owner's group sees all or nothing, never a part.
                    assert (owner, user) == ("dbt_plain", "dbt")
            for table in RAW_TABLES:
                with pytest.raises(DENIED):
                    connection.execute(f"delete from token_tracking_raw.{table}")  # type: ignore[arg-type]
            for statement in (
                "select token_tracking_raw.track_token_usage('acme', 1)",
                "insert into token_tracking_raw.tenant_readers values ('dbt_plain', 'acme')",
                "create table token_tracking_raw.mine ()",
                "create schema mine",
                "create role mine",
                "set role token_tracking_owner",
            ):
                with pytest.raises(DENIED):
                    connection.execute(statement)


def test_an_analyst_reads_the_marts_and_nothing_else(marts: Database):
    found_by_tests = {
        relation
        for relation, schema in relations(marts).items()
        if schema == "token_tracking_dbt_test__audit"
    }
    assert readable(marts, "ana") == FOR_ALL | found_by_tests
    assert readable(marts, "bill") == FOR_ALL | TABLES_OF_PRICES
    with closing(login(marts, "ana")) as connection:
        without_tenants = {
            "agent_owner_periods",
            "build_status",
            "unmapped_labels",
            "unpriced_usage",
            "usage_days",
        }
        for mart in FOR_ALL - without_tenants:
            tenants = connection.execute(f"select distinct tenant_id from token_tracking.{mart}")  # type: ignore[arg-type]
            assert {tenant for (tenant,) in tenants} >= {"acme", "secret-a"}
        for statement in (
            *(f"truncate token_tracking.{mart}_token_usage" for mart in ("hourly", "daily")),
            "delete from token_tracking.monthly_token_usage",
            "update token_tracking.daily_token_usage set tokens = 0",
            "insert into token_tracking.label_aliases values ('operation', 'a', 'chat')",
            "create table token_tracking.mine ()",
            "select token_tracking_raw.track_token_usage('acme', 1)",
            "set role token_tracking_transformer",
        ):
            with pytest.raises(DENIED):
                connection.execute(statement)  # type: ignore[arg-type]


def test_a_tenants_reader_reads_its_own_rows_and_nothing_else(marts: Database):
    assert readable(marts, "acme_reader") == FOR_TENANTS
    with closing(login(marts, "acme_reader")) as connection:
        for mart in FOR_TENANTS:
            rows = connection.execute(f"select * from token_tracking.{mart}").fetchall()  # type: ignore[arg-type]
            assert rows
            assert not [row for row in rows if "acme" not in row]
        sums = "select sum(tokens)::bigint from token_tracking.tenant_token_usage"
        own = 1010 + sum(1000 * day for day in range(1, 200))
        assert connection.execute(sums).fetchone() == (own + OTHERS,)
        lists = "select distinct price_list, is_billed from token_tracking.{}"
        for mart in ("daily_token_cost", "daily_token_cost_now", "monthly_token_cost"):
            found = connection.execute(lists.format(mart)).fetchall()  # type: ignore[arg-type]
            assert sorted(found) == [("acme-list", True), ("list", True)]
        agents = (
            "select requester_tenant_id, tokens, event_count"
            " from token_tracking.tenant_agent_token_usage order by tokens"
        )
        assert connection.execute(agents).fetchall() == [("acme", 1000, 1), (None, OTHERS, 2)]


@pytest.mark.parametrize("user", ["reader_of_nothing", "web_backend"])
def test_without_a_row_of_its_own_a_reader_sees_nothing(marts: Database, user: str):
    with closing(login(marts, user)) as connection:
        for mart in FOR_TENANTS:
            assert connection.execute(f"select * from token_tracking.{mart}").fetchall() == []  # type: ignore[arg-type]


def test_access_is_taken_away_by_the_readers_row(rebuilt: Database):
    [away] = re.findall(r"`(delete from [^`]*)`", GUIDE)
    query = "select count(*) from token_tracking.tenant_token_usage"
    before = rebuilt.rows("select * from token_tracking_raw.tenant_readers")
    with closing(login(rebuilt, "acme_reader")) as connection:
        assert connection.execute(query).fetchone() == (1,)
        execute(rebuilt, away)
        try:
            assert connection.execute(query).fetchone() == (0,)
        finally:
            execute(
                rebuilt,
                "insert into token_tracking_raw.tenant_readers values ('acme_reader', 'acme')",
            )
    assert sorted(map(str, before)) == sorted(
        map(str, rebuilt.rows("select * from token_tracking_raw.tenant_readers"))
    )


def test_a_role_granted_a_mart_by_hand_sees_no_rows(rebuilt: Database):
    tables = (
        *(
            f"{name}_token_usage"
            for name in ("hourly", "daily", "monthly", "daily_agent", "tenant")
        ),
        *("daily_token_cost", "monthly_token_cost", "daily_token_cost_now", "daily_cache_savings"),
    )
    views = ("usage_events", "unmapped_labels", "build_status", "hourly_token_cost", "usage_days")
    execute(
        rebuilt,
        "create role by_hand login",
        "grant usage on schema token_tracking to by_hand",
        "grant select on all tables in schema token_tracking to by_hand",
    )
    try:
        with closing(login(rebuilt, "by_hand")) as connection:
            rows = {
                relation: connection.execute(
                    f"select count(*) > 0 from token_tracking.{relation}"  # type: ignore[arg-type]
                ).fetchone()
                for relation in (*tables, *views)
            }
    finally:
        execute(rebuilt, "drop owned by by_hand", "drop role by_hand")
    assert {relation for relation, (there,) in rows.items() if there} == set(views)  # type: ignore[misc]


def test_the_planner_knows_no_names_by_what_indexes_compute(rebuilt: Database):
    """EXPLAIN of a condition on a guessed digest would tell whether it is there."""
    execute(rebuilt, "analyze")
    digests = rebuilt.rows(
        "select pg_index.indrelid::regclass::text from pg_index"
        " where pg_get_indexdef(indexrelid) ~ 'sha256'"
        " and indrelid::regclass::text ~ '_token_cost$'"
    )
    assert len(digests) == 2
    assert not rebuilt.rows(
        "select tablename, attname from pg_stats where schemaname = 'token_tracking'"
        " and attname = 'sha256'"
    )


def test_a_trusted_backend_names_the_tenant_by_transaction(marts: Database):
    tenants = "select array_agg(distinct tenant_id) from token_tracking.monthly_token_usage"
    with closing(login(marts, "web_backend")) as connection:
        for tenant in ("acme", "secret-a"):
            begin, name_it, *_, commit = ASK_SQL.replace("acme", tenant).strip().split("\n")
            for statement in (begin, name_it):
                connection.execute(statement)  # type: ignore[arg-type]
            assert connection.execute(tenants).fetchone() == ([tenant],)
            connection.execute(commit)  # type: ignore[arg-type]
            assert connection.execute(tenants).fetchone() == (None,)


LEAK = """
    create function pg_temp.leak(anyelement) returns boolean language plpgsql immutable
    cost 0.0000001 as
    'begin raise notice ''leaked %'', $1; return true; end'
"""


def attacks() -> list[str]:
    """Return a tenant's attempts to see others: by rows, messages, plans and statistics."""
    tried = [
        LEAK,
        "select * from pg_stats where schemaname <> 'pg_catalog'",
        "select * from pg_stats_ext",
        "select pg_get_viewdef(oid) from pg_class where relkind = 'v' and relname !~ '^pg_'",
        "explain verbose select * from token_tracking.daily_token_cost_now",
        "explain verbose select * from token_tracking.daily_cache_savings",
        "select * from pg_statistic",
        "select * from pg_stat_activity",
        "select * from token_tracking_raw.tenant_readers",
        "set token_tracking.tenant_id = 'secret-a'",
        "select token_tracking_raw.track_token_usage_batch('[]')",
        "select requester_tenant_id from token_tracking.daily_agent_token_usage",
        "create temporary table mine (like token_tracking.daily_token_usage including all)",
        "alter table mine add foreign key (tenant_id) references token_tracking.tenant_token_usage",
    ]
    for mart in sorted(FOR_TENANTS | FOR_ALL | set(RAW_TABLES)):
        schema = "token_tracking_raw" if mart in RAW_TABLES else "token_tracking"
        relation = f"{schema}.{mart}"
        tried += [
            f"select * from {relation}",
            f"select * from {relation} where tenant_id <> 'acme'",
            f"select * from {relation} where pg_temp.leak(tenant_id)",
            f"select * from {relation} where pg_temp.leak(tokens)",
            f"select * from {relation} where pg_temp.leak(agent_id)",
            f"select * from {relation} as mart where pg_temp.leak(mart::text)",
            f"select * from {relation} where tenant_id::integer = 1",
            f"select * from {relation} where (tokens::text || tenant_id)::integer = 1",
            f"select * from {relation} where 1 / (tokens - 7 - tokens + 7) = 1",
            f"explain (analyze, verbose) select * from {relation} where tenant_id <> 'acme'",
            f"copy {relation} to stdout",
            f"copy (select * from {relation}) to stdout",
            f"select query_to_xml('select * from {relation}', true, false, '')",
            f"set row_security = off; select * from {relation}",
            "reset row_security",
            f"set role token_tracking_analyst; select * from {relation}",
            f"set role token_tracking_transformer; select * from {relation}",
            f"begin; declare mine cursor for select * from {relation}; fetch all from mine; commit",
            "rollback",
            f"create view pg_temp.mine as select * from {relation}; select * from pg_temp.mine",
            "drop view if exists pg_temp.mine",
            f"insert into {relation} select * from {relation}",
            f"update {relation} set tenant_id = tenant_id",
            f"analyze verbose {relation}",
            f"create policy mine on {relation} using (true)",
            f"alter table {relation} disable row level security",
            f"create index on {relation} (pg_temp.leak(tenant_id))",
        ]
    return tried


def all_seen(database: Database, user: str) -> str:
    """Return every row, notice and message that the attacks produce, as text."""
    seen: list[str] = []
    with closing(login(database, user)) as connection:
        connection.add_notice_handler(lambda notice: seen.append(str(notice.message_primary)))
        for attack in attacks():
            cursor = connection.cursor()
            try:
                if attack.startswith("copy"):
                    with cursor.copy(attack) as copy:  # type: ignore[arg-type]
                        seen += [bytes(block).decode() for block in copy]
                    continue
                cursor.execute(attack)  # type: ignore[arg-type]
                while True:
                    seen += [str(row) for row in cursor] if cursor.description else []
                    if not cursor.nextset():
                        break
            except psycopg.Error as error:
                said = error.diag
                seen += map(str, (said.message_primary, said.message_detail, said.context))
    return "\n".join(seen)


def test_a_tenant_finds_no_value_of_another_anywhere(marts: Database):
    seen = all_seen(marts, "acme_reader")
    assert "leaked acme" in seen, "the leaky function never ran"
    assert str(OTHERS) in seen
    assert "permission denied" in seen
    found = [line for line in seen.splitlines() for secret in SECRETS if secret in line]
    assert found == []


def estimates(database: Database) -> list[set[str]]:
    """Return the planner's estimates for conditions that differ only in a value."""
    conditions = [
        [f"tokens > {number}" for number in (0, 100000, 190000, 10**12)],
        [f"tenant_id = '{tenant}'" for tenant in ("secret-a", "nobody")],
        [f"model = '{model}'" for model in ("secret-model", "none")],
    ]
    with closing(login(database, "acme_reader")) as connection:
        return [
            {
                str(connection.execute(f"explain select from {mart} where {condition}").fetchone())  # type: ignore[arg-type]
                for condition in alike
            }
            for alike in conditions
            for mart in ("token_tracking.daily_token_usage", "token_tracking.hourly_token_usage")
        ]


def test_plans_say_nothing_of_numbers_and_names(marts: Database):
    assert [len(alike) for alike in estimates(marts)] == [1] * 6


# What a tenant may ask of each mart about others: the table behind it, a condition, a value that a
# row of another tenant has, and one that no row has.
QUESTIONS = [
    *(
        (mart, table, condition, met, unmet)
        for mart, table in (
            *((f"{period}_token_usage",) * 2 for period in ("hourly", "daily")),
            *((f"{mart}_now", mart) for mart in NOW[:2]),
            ("tenant_token_usage", "daily_token_usage"),
            ("tenant_agent_token_usage", "daily_agent_token_usage"),
        )
        for condition, met, unmet in (
            ("tenant_id = '{}'", "secret-a", "nobody"),
            ("tenant_id = any('{{{}}}')", "secret-a", "nobody"),
            ("('{{\"{}\": 1}}'::jsonb)[tenant_id] is not null", "secret-a", "nobody"),
        )
    ),
    *(
        (f"{mart}{suffix}", mart, condition, met, unmet)
        for mart in NOW
        for suffix in ("", "_now")
        for condition, met, unmet in (
            ("tenant_id = 'secret-c' and tokens > {}", 104728, 104729),
            (
                "tenant_id = any('{{secret-c}}') and tokens > any('{{{}}}'::bigint[])",
                104728,
                104729,
            ),
            ("operation = 'unknown' and tokens = {}", 104729, 104730),
        )
    ),
    *(
        (mart, table, condition, "secret-model", "none")
        for table in NOW
        for mart in (table, f"{table}_now")
        for condition in ("model = '{}'", "model = any('{{{}}}')")
    ),
    *(
        ("tenant_agent_token_usage", "daily_agent_token_usage", condition, "secret-agent", "none")
        for condition in (
            "agent_id = '{}'",
            "agent_id = any('{{{}}}')",
            "('{{\"{}\": 1}}'::jsonb)[agent_id] is not null",
        )
    ),
]
WITHOUT_INDEX = "; ".join(
    f"set enable_{way} = off" for way in ("indexscan", "indexonlyscan", "bitmapscan")
)
# Of this session, including what its earlier transactions have not reported yet.
COUNTERS = (
    "select array[seq_scan, seq_tup_read, idx_scan, idx_tup_fetch] from pg_stat_xact_all_tables"
    " where schemaname like 'token_tracking%' order by relid"
)


def told(connection: psycopg.Connection[tuple], mart: str, condition: str, value: object) -> str:
    """Return what plan and counters reveal about a query, without the value in its condition."""
    query = f"select from token_tracking.{mart} where {condition.format(value)}"
    explain = f"explain (analyze, buffers off, costs off, timing off, summary off) {query}"
    before = connection.execute(COUNTERS).fetchall()
    plan = connection.execute(explain).fetchall()  # type: ignore[arg-type]
    after = connection.execute(COUNTERS).fetchall()
    connection.rollback()
    counted = [
        (new or 0) - (old or 0)
        for (news,), (olds,) in zip(after, before, strict=True)
        for new, old in zip(news, olds, strict=True)
    ]
    text = "\n".join(line for (line,) in plan)
    return re.sub(rf"\b{value}\b", "?", f"{text}\n{counted}")


def telling_questions(database: Database, setting: str, questions: list[tuple]) -> list[str]:
    """Return the conditions whose plan or counters depend on whether another's row meets them."""
    telling = []
    with closing(login(database, "acme_reader")) as connection:
        connection.execute(setting)  # type: ignore[arg-type]
        connection.autocommit = False
        for mart, table, condition, met, unmet in questions:
            # There is something to reveal.
            assert [
                database.value(f"select count(*) > 0 from token_tracking.{table} where {asked}")
                for asked in (condition.format(met), condition.format(unmet))
            ] == [True, False]
            # The first query does not profit from caches that an earlier one has filled.
            _, *answers = [told(connection, mart, condition, value) for value in (met, met, unmet)]
            assert "tenant_readers" in answers[0]
            if len(set(answers)) > 1:
                telling.append(f"{mart}: {condition}")
    return telling


@pytest.mark.parametrize("fixture", ["built", "rebuilt", "built_15"])
def test_whether_others_meet_a_condition_is_not_told(fixture: str, request: pytest.FixtureRequest):
    database = request.getfixturevalue(fixture)
    assert telling_questions(database, WITHOUT_INDEX, QUESTIONS) == []
    # An index tells whether it has an entry: what is in none is not told with it either.
    numbers = [question for question in QUESTIONS if "tokens >" in question[2]]
    assert telling_questions(database, "set enable_seqscan = off", numbers) == []
    assert telling_questions(database, "set jit = off", numbers) == []


def test_an_index_tells_that_it_has_an_entry(built_15: Database):
    """The limit stated in docs/roles.md."""
    condition = "usage_date = '2026-03-10' and tenant_id = '{}'"
    question = ("daily_token_usage", "daily_token_usage", condition, "secret-c", "nobody")
    assert telling_questions(built_15, "set enable_seqscan = off", [question]) != []


@pytest.mark.parametrize("own_rows", ["tenant_id = any({})", "array[tenant_id] <@ {}"])
def test_a_dearer_policy_would_tell(rebuilt: Database, own_rows: str):
    tenants = (
        "array(select tenant_id from token_tracking_raw.tenant_readers"
        " where role_name = current_user)"
    )
    policy = "policy own_rows on token_tracking.daily_token_usage"
    [(before,)] = rebuilt.rows(
        "select qual from pg_policies"
        " where tablename = 'daily_token_usage' and policyname = 'own_rows'"
    )
    numbers = [
        question for question in QUESTIONS if "secret-c" in question[2] and "any" in question[2]
    ]
    try:
        execute(rebuilt, f"alter {policy} using ({own_rows.format(tenants)})")
        assert len(telling_questions(rebuilt, WITHOUT_INDEX, numbers)) == 1
    finally:
        execute(rebuilt, f"alter {policy} using ({before})")
    assert telling_questions(rebuilt, WITHOUT_INDEX, numbers) == []


def test_the_views_are_barriers_after_each_build(marts: Database):
    options = (
        "select relname, reloptions from pg_class"
        " where relname ~ '^tenant.*token_usage$' or relname ~ '(_now|_savings)$'"
    )
    assert dict(marts.rows(options)) == {
        "tenant_token_usage": ["security_invoker=true"],
        "tenant_agent_token_usage": ["security_barrier=true"],
        "daily_cache_savings": ["security_barrier=true"],
        **{f"{mart}_now": ["security_barrier=true"] for mart in (*NOW, "daily_token_cost")},
    }


def test_a_readers_own_rows_are_found_by_index(built: Database):
    with closing(login(built, "acme_reader")) as connection:
        plan = connection.execute(
            "explain select * from token_tracking.daily_token_usage where usage_date = '2026-03-10'"
        ).fetchall()
    assert re.search("Index Cond: .*usage_date = .* AND .*tenant_id = ANY", str(plan))


@pytest.mark.parametrize(
    ("away", "back"),
    [
        (
            "alter table token_tracking.daily_token_usage disable row level security",
            "alter table token_tracking.daily_token_usage enable row level security",
        ),
        (
            "create policy every_row on token_tracking.monthly_token_usage using (true)",
            "drop policy every_row on token_tracking.monthly_token_usage",
        ),
        (
            "alter view token_tracking.tenant_token_usage reset (security_invoker)",
            "alter view token_tracking.tenant_token_usage set (security_invoker = true)",
        ),
        (
            "grant select on token_tracking.daily_agent_token_usage to acme_reader",
            "revoke select on token_tracking.daily_agent_token_usage from acme_reader",
        ),
        (
            "grant token_tracking_analyst to acme_reader",
            "revoke token_tracking_analyst from acme_reader",
        ),
        (
            "insert into token_tracking_raw.tenant_readers values ('acme_reader', 'secret-c')",
            "delete from token_tracking_raw.tenant_readers where tenant_id = 'secret-c'",
        ),
    ],
)
def test_each_protection_is_needed(rebuilt: Database, away: str, back: str):
    try:
        execute(rebuilt, away)
        assert "secret" in all_seen(rebuilt, "acme_reader")
    finally:
        execute(rebuilt, back)


def test_plans_would_tell_numbers_and_names(rebuilt: Database):
    execute(
        rebuilt,
        "create table public.copy as select * from token_tracking.daily_token_usage",
        "analyze public.copy",
        "grant select on public.copy to acme_reader",
    )
    explain = "explain select from public.copy where tokens > "
    with closing(login(rebuilt, "acme_reader")) as connection:
        plans = {
            str(connection.execute(explain + number).fetchone())  # type: ignore[arg-type]
            for number in ("0", "1000000000000")
        }
    assert len(plans) == 2


def test_a_build_of_nothing_new_leaves_rights_alone(
    rebuilt: Database, tmp_path_factory: pytest.TempPathFactory
):
    catalog = (
        "select relname, xmin::text, relacl::text from pg_class"
        " where relnamespace = 'token_tracking'::regnamespace and relkind in ('r', 'v')"
        " union all select polname, xmin::text, oid::text from pg_policy order by 1, 2, 3"
    )
    before = rebuilt.rows(catalog)
    project_of(rebuilt, "dbt", tmp_path_factory).must("run")
    assert rebuilt.rows(catalog) == before


MODES = (
    "access exclusive",
    "exclusive",
    "share row exclusive",
    "share",
    "share update exclusive",
    "row exclusive",
    "row share",
    "access share",
)
NAMES_OF_LOCKS = (
    "select pg_advisory_lock(hashtextextended('token_tracking_raw', 0))",
    *(
        f"select pg_advisory_lock(hashtext('token_tracking'), hashtext('{name}'))"
        for name in (
            "token_tracking",
            "token_tracking_dbt_test__audit",
            "token_tracking grants",
            "token_tracking_dbt_test__audit grants",
        )
    ),
    *(
        f"select pg_advisory_lock(hashtext('token_tracking'), hashtext(format({form!r}, nspname,"
        " relname))) from pg_class inner join pg_namespace on relnamespace = pg_namespace.oid"
        " where nspname ~ '^token_tracking'"
        for form in ("%I.%I", '"%s"."%s"')
    ),
)


def test_a_tenants_reader_stops_nothing(
    rebuilt: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The tenant takes every lock that it can: advisory ones, and those of tables it reads."""
    relations = [
        name
        for (name,) in rebuilt.rows(
            "select pg_class.oid::regclass::text from pg_class"
            " inner join pg_namespace on relnamespace = pg_namespace.oid"
            " where nspname ~ '^token_tracking' and relkind in ('r', 'v')"
        )
    ]
    taken: set[tuple[str, str]] = set()
    with closing(psycopg.connect(rebuilt.url, user="acme_reader")) as reader:
        for statement in NAMES_OF_LOCKS:
            reader.execute(statement)  # type: ignore[arg-type]
        for relation in relations:
            for mode in MODES:
                try:
                    with reader.transaction():
                        reader.execute(f"lock table {relation} in {mode} mode")  # type: ignore[arg-type]
                    taken.add((relation, mode))
                except psycopg.errors.InsufficientPrivilege:
                    pass
        # Before PostgreSQL 16, SELECT does not allow any other lock, either.
        assert {mode for _, mode in taken} == {"access share"}
        assert {relation.partition(".")[2] for relation, _ in taken} == FOR_TENANTS
        for number in range(2):
            Warehouse(rebuilt).insert([Event(f"locked-{number}", NOON, "acme", 1)])
            project_of(rebuilt, "dbt", tmp_path_factory).must("build")
        with closing(login(rebuilt, "admin")) as admin:
            admin.execute("set statement_timeout = '60s'")
            Roles().apply(admin)
        Warehouse(rebuilt).insert([Event("locked-last", NOON, "acme", 1)])
        done = command(ROOT, {**rebuilt.env, "PGUSER": "dbt"}, "--once")
        assert done.returncode == 0, done.stderr
    Warehouse(rebuilt).check()
