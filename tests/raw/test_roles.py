"""The roles of the raw schema: who creates them, and what a writer may and may not do.

On servers of their own, for roles belong to a cluster and other tests' builds must find none.
"""

from __future__ import annotations

import json
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.commands import run
from tests.support.databases import DEBIAN_15, NOT_DURABLE, Database, started_server
from tests.support.logins import DENIED, RAW_TABLES, execute, login, managed_database
from token_tracking.errors import SchemaError
from token_tracking.raw.roles import Roles
from token_tracking.raw.schema import apply_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from token_tracking.embedded.server import Server

PROCEDURES = {
    "record_agent_owner(text,text,timestamp with time zone)",
    "record_agent_owner_once(text,text,timestamp with time zone,uuid)",
    "has_usage_between(timestamp with time zone,timestamp with time zone,bigint)",
    "recorded_usage(json,bigint,text[])",
    "reject_usage_event(json,text)",
    "track_token_usage(text,bigint,text,text,text,jsonb,text,text,text)",
    "track_token_usage(uuid,bigint,text,text,text,jsonb,text,uuid,uuid)",
    "track_token_usage_batch(json)",
    "void_recorded_usage(json,bigint[],text,boolean)",
    "void_token_usage(text,text,text)",
}
PRICES = ("model_prices", "model_aliases", "price_list_rules", "tenant_price_lists")
FIRST = "first_usage_hour"
BATCH = "select * from token_tracking_raw.track_token_usage_batch(%s::pg_catalog.json)"

servers = {"embedded 18": "cluster", "Debian 15": "cluster_15"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    yield from started_server(None, NOT_DURABLE)


@pytest.fixture(scope="module")
def cluster_15() -> Iterator[Server]:
    if not DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    yield from started_server(DEBIAN_15, {**NOT_DURABLE, "shared_preload_libraries": ""})


@pytest.fixture(scope="module", params=servers)
def raw(request: pytest.FixtureRequest) -> Iterator[Database]:
    server = request.getfixturevalue(servers[request.param])
    with managed_database(server, "raw", "service", "mallory") as database:
        execute(
            database,
            "create role service login in role token_tracking_writer",
            "create role mallory login in role token_tracking_writer",
            user="admin",
        )
        yield database


def test_a_writer_calls_the_procedures(raw: Database):
    with closing(login(raw, "service")) as connection:
        for call in (
            "track_token_usage('acme', 5, p_idempotency_key => 'calls')",
            "track_token_usage(gen_random_uuid(), 5)",
            "void_token_usage('acme', 'other', 'test')",
            "record_agent_owner('bot', 'acme')",
        ):
            assert connection.execute(f"select token_tracking_raw.{call}").fetchone() == (True,)
        events = [{"tenant_id": "acme", "tokens": 5}, {"tenant_id": "acme", "tokens": -5}]
        told = connection.execute(BATCH, (json.dumps(events),)).fetchone()
        assert told is not None
        assert told[:4] == (1, 0, 0, 1)
        connection.execute("select token_tracking_raw.reject_usage_event('{}', 'no event')")
    assert raw.value(
        "select recorded_by from token_tracking_raw.agent_owners where agent_id = 'bot'"
    ) == ("service")


def test_a_writer_can_do_nothing_else(raw: Database):
    may_call = raw.rows(
        "select replace(oid::regprocedure::text, 'token_tracking_raw.', '') from pg_proc"
        " where pronamespace = 'token_tracking_raw'::regnamespace"
        " and has_function_privilege('service', oid, 'execute')"
    )
    assert {name for (name,) in may_call} == PROCEDURES
    tables = {
        name
        for (name,) in raw.rows(
            "select relname from pg_class"
            " where relnamespace = 'token_tracking_raw'::regnamespace and relkind in ('r', 'v')"
        )
    }
    assert tables >= set(RAW_TABLES)
    with closing(login(raw, "service")) as connection:
        for statement in [
            *(
                statement.format(f"token_tracking_raw.{table}")
                for table in tables
                for statement in (
                    "select from {}",
                    "insert into {} default values",
                    "delete from {}",
                    "truncate {}",
                )
            ),
            "update token_tracking_raw.usage_events set recorded_at = now(), ingest_xid = 1",
            "select token_tracking_raw.json_kind('1')",
            "create table token_tracking_raw.mine ()",
            "create table token_tracking.mine ()",
            "create function token_tracking_raw.lower(text) returns text return 'mine'",
            "alter function token_tracking_raw.reject_usage_event reset search_path",
            "set role token_tracking_owner",
            "set role token_tracking_transformer",
            "set session authorization postgres",
        ]:
            with pytest.raises(DENIED):
                connection.execute(statement)  # type: ignore[arg-type]


def test_a_biller_keeps_prices_and_sees_no_event(raw: Database):
    execute(raw, "create role bill login in role token_tracking_biller", user="admin")
    try:
        may_call = raw.rows(
            "select proname from pg_proc where pronamespace = 'token_tracking_raw'::regnamespace"
            " and has_function_privilege('bill', oid, 'execute')"
        )
        assert {name for (name,) in may_call} == {*(f"record_{name}" for name in PRICES), FIRST}
        with closing(login(raw, "bill")) as connection:
            price = {
                "provider": "openai", "model": "gpt-4o", "token_kind": "input", "amount": 2.5,
                "valid_from": "2026-03-01T00:00Z",
            }  # fmt: skip
            query = "select recorded, rejected from token_tracking_raw.record_model_prices(%s)"
            assert connection.execute(query, (json.dumps([price]),)).fetchone() == (1, 0)
            assert connection.execute(
                "select recorded_by from token_tracking_raw.model_prices"
            ).fetchone() == ("bill",)
            connection.execute(f"select token_tracking_raw.{FIRST}()")
            for table in RAW_TABLES:
                for statement in ("select from {}", "insert into {} default values", "truncate {}"):
                    if table in PRICES and statement.startswith("select"):
                        connection.execute(f"select from token_tracking_raw.{table}")  # type: ignore[arg-type]
                        continue
                    with pytest.raises(DENIED):
                        connection.execute(statement.format(f"token_tracking_raw.{table}"))  # type: ignore[arg-type]
            with pytest.raises(DENIED):
                connection.execute(
                    "select token_tracking_raw.record_price_rows('model_prices', '[]')"
                )
    finally:
        execute(raw, "drop role bill")


def test_a_writer_cannot_set_what_the_server_sets(raw: Database):
    event = {"tenant_id": "acme", "idempotency_key": "when", "tokens": 5}
    with closing(login(raw, "service")) as connection:
        for field, value in (("ingest_xid", 1), ("recorded_at", "2020-01-01T00:00:00+00:00")):
            told = connection.execute(BATCH, (json.dumps([{**event, field: value}]),)).fetchone()
            assert told is not None
            assert told[:4] == (0, 0, 0, 1)
            assert told[4][0]["reason"].startswith(f"{field}: unknown field")
        connection.execute(BATCH, (json.dumps([event]),))
    assert raw.rows(
        "select recorded_at > now() - interval '1 minute', ingest_xid::text = xmin::text"
        " from token_tracking_raw.usage_events where idempotency_key = 'when'"
    ) == [(True, True)]


def test_a_load_is_taken_back_by_a_writer_and_nobody_else(raw: Database, tmp_path: Path):
    file = tmp_path / "usage.csv"
    file.write_text("tenant_id,tokens,occurred_at\nundone,5,2026-05-01T10:00:00Z\n")
    voids = "select count(*) from token_tracking_raw.usage_voids where tenant_id = 'undone'"
    undo = ("load", file, "--undo", "--yes")
    service = {**raw.env, "PGUSER": "service"}
    assert run("load", file, env=service).code == 0
    execute(raw, "create role stranger login")
    try:
        ended = run(*undo, env={**raw.env, "PGUSER": "stranger"})
    finally:
        execute(raw, "drop role stranger")
    assert (ended.code, ended.out, raw.value(voids)) == (1, "", 0)
    assert ended.err.startswith("Error: ")
    assert "permission denied" in ended.err
    assert run(*undo, env=service).code == 0
    assert raw.value(voids) == 1


def test_a_conflict_says_nothing_of_the_recorded_event(raw: Database):
    secret = {
        "tenant_id": "acme",
        "idempotency_key": "known",
        "tokens": 7919,
        "input_tokens": 7907,
        "model": "secret-model",
        "agent_id": "secret-agent",
        "operation": "secret-operation",
        "metadata": {"who": "secret-person"},
    }
    said: list[str] = []
    with closing(login(raw, "service")) as connection:
        connection.execute(BATCH, (json.dumps([secret]),))
    with closing(login(raw, "mallory")) as connection:
        connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        guess = {"tenant_id": "acme", "idempotency_key": "known", "tokens": 1}
        told = connection.execute(BATCH, (json.dumps([guess, guess]),)).fetchone()
        said.append(str(told))
        single = "select token_tracking_raw.track_token_usage('acme', 1, p_idempotency_key => %s)"
        assert connection.execute(single, ("known",)).fetchone() == (False,)
    assert (
        "tokens, input_tokens, operation, model, agent_id: different from the event recorded"
        in said[-1]
    )
    assert not [text for text in said if "secret" in text or "79" in text]


def test_a_writer_can_guess_what_was_recorded(raw: Database):
    """The limit stated in docs/roles.md: one call can make many guesses, without a trace."""
    event = {"tenant_id": "acme", "idempotency_key": "guessed", "tokens": 79}
    guesses = [{**event, "tokens": tokens} for tokens in range(100)]
    with closing(login(raw, "service")) as connection:
        connection.execute(BATCH, (json.dumps([event]),))
    with closing(login(raw, "mallory")) as connection:
        connection.autocommit = False
        told = connection.execute(BATCH, (json.dumps(guesses),)).fetchone()
        connection.rollback()
    assert told is not None
    assert set(range(100)) - {problem["index"] for problem in told[4]} == {79}
    trace = "select count(*) from token_tracking_raw.usage_event_conflicts"
    assert raw.value(f"{trace} where idempotency_key = 'guessed'") == 0


# Functions by name, arguments and result; operators by name, result, left and right.
FUNCTIONS_USED = r"""
    select distinct
        quote_ident(functions.proname),
        pg_get_function_identity_arguments(functions.oid),
        pg_get_function_result(functions.oid)
    from pg_proc as functions
    inner join pg_proc as ours on ours.prosrc ~ ('\m' || functions.proname || '\(')
    where
        functions.pronamespace = 'pg_catalog'::regnamespace
        and ours.pronamespace = 'token_tracking_raw'::regnamespace
        and functions.prokind = 'f'
        -- What takes "any" is for functions in C alone.
        and '"any"'::regtype <> all (functions.proargtypes::oid[])
"""
OPERATORS = """
    select oprname, oprresult::regtype::text, oprleft::regtype::text, oprright::regtype::text
    from pg_operator
    where
        oprnamespace = 'pg_catalog'::regnamespace
        and oprleft = any ('{text,json,jsonb,int4,int8,numeric,timestamptz,bool}'::regtype[])
"""
CAUGHT = """
    create function evil.caught() returns void language plpgsql as
    'begin raise exception ''evil ran as %'', current_user; end'
"""


def make_evil(connection: psycopg.Connection[tuple]) -> None:
    """Redefine every function and operator in use, in the schema `evil`."""
    connection.execute("grant usage on schema evil to public")
    connection.execute("create table evil.nothing ()")
    connection.execute(CAUGHT)
    functions = connection.execute(FUNCTIONS_USED).fetchall()
    functions += [("format", "text, text", "text"), ("format", "text, text, integer", "text")]
    operators = connection.execute(OPERATORS).fetchall()
    assert len(functions) > 50
    assert len(operators) > 100
    body = "language plpgsql as 'begin perform evil.caught(); end'"
    statements = [
        f"create function evil.{name}({arguments}) returns {result} {body}"
        for name, arguments, result in functions
    ]
    for number, (name, result, left, right) in enumerate(operators):
        function = f"evil.operator_{number}"
        statements += [
            f"create function {function}({left}, {right}) returns {result} {body}",
            f"create operator evil.{name}"
            f" (leftarg = {left}, rightarg = {right}, function = {function})",
        ]
    connection.execute(";".join(statements))  # type: ignore[arg-type]


TEMPORARY = (
    *(f"create temporary table {table} (like evil.nothing)" for table in RAW_TABLES),
    *(
        f"create domain pg_temp.{name} as pg_catalog.{name} check (false)"
        for name in ("text", "json", "jsonb", "timestamptz", "bytea", "interval")
    ),
)


@pytest.fixture(scope="module")
def evil(raw: Database) -> Database:
    """A writer's schema that redefines every function and operator in use."""
    execute(raw, "create schema evil authorization mallory")
    with closing(login(raw, "mallory")) as connection:
        make_evil(connection)
    return raw


def attack(
    database: Database, prefix: str, path: str = "pg_temp, evil, pg_catalog"
) -> list[tuple[object, ...]]:
    """Call every procedure from a session whose search path finds the redefinitions first."""
    event = {
        "tenant_id": prefix,
        "idempotency_key": "1",
        "tokens": 5,
        "token_type": "llm",
        "operation": "query",
        "metadata": {"a": [1.5]},
        "occurred_at": "2026-03-10T12:00:00.000001+00:00",
    }
    batch = [
        event,
        event,
        {**event, "tokens": 6},
        {**event, "idempotency_key": "2", "operation": " Chat", "tokens": 7},
        {**event, "idempotency_key": "3", "occurred_at": "2026-03-10 12:00:00.123456789+02"},
        {**event, "idempotency_key": "4", "tokens": 1.5},
        {**event, "idempotency_key": "5", "metadata": 5},
        {**event, "idempotency_key": "6", "occurred_at": "2026-02-31T12:00:00+00:00"},
        {"tenant_id": prefix, "input_tokens": 5},
        "nothing",
    ]
    poison = json.dumps([*batch[:3], {**event, "idempotency_key": "7"}]).replace('"7"', '"\\u0000"')
    calls = [
        (BATCH, (json.dumps(batch[:1], separators=(",", ":")),)),
        (BATCH, (json.dumps(batch),)),
        (BATCH, (poison,)),
        (BATCH, ("5",)),
        (
            "select token_tracking_raw.track_token_usage(%s, 5, p_idempotency_key => '1')",
            (prefix,),
        ),
        ("select token_tracking_raw.void_token_usage(%s, '1', '')", (prefix,)),
        ("select token_tracking_raw.void_token_usage(%s, '1', 'test')", (prefix,)),
        ("select token_tracking_raw.record_agent_owner(%s, 'b', '2026-01-01 00:00+00')", (prefix,)),
        (
            "select token_tracking_raw.record_agent_owner_once("
            "%s, 'c', '2026-01-01 00:00+00', pg_catalog.gen_random_uuid())",
            (prefix,),
        ),
        ("select token_tracking_raw.record_agent_owner(%s, '', '2026-01-01 00:00+00')", (prefix,)),
        ("select token_tracking_raw.reject_usage_event('{}', 'test')", ()),
    ]
    with closing(login(database, "mallory")) as connection:
        for statement in TEMPORARY:
            connection.execute(statement)  # type: ignore[arg-type]
        connection.execute(f"set search_path = {path}")  # type: ignore[arg-type]
        return [connection.execute(call, values).fetchone() or () for call, values in calls]  # type: ignore[arg-type]


def test_names_of_a_callers_own_are_never_called(evil: Database):
    told = attack(evil, "attacked")
    assert told[0] == (1, 0, 0, 0, None)
    assert told[1][:4] == (3, 2, 1, 4)
    assert [row[0] for row in told[4:10]] == [True, False, True, True, True, False]
    assert evil.rows(
        "select idempotency_key, operation, tokens from token_tracking_raw.usage_events"
        " where tenant_id = 'attacked' and length(idempotency_key) = 1 order by 1"
    ) == [("1", "query", 5), ("2", "chat", 7), ("3", "query", 5)]


@pytest.mark.parametrize(
    ("procedure", "path", "says"),
    [
        (
            "track_token_usage_batch",
            "evil, pg_catalog, pg_temp",
            "evil ran as token_tracking_owner",
        ),
        (
            "record_agent_owner_once",
            "evil, pg_catalog, pg_temp",
            "evil ran as token_tracking_owner",
        ),
        ("void_token_usage", "pg_temp, pg_catalog", "value for domain text"),
    ],
)
def test_each_procedure_needs_its_search_path(evil: Database, procedure: str, path: str, says: str):
    try:
        execute(evil, f"alter function token_tracking_raw.{procedure} reset search_path")
        with pytest.raises(psycopg.Error, match=says):
            attack(evil, procedure, path)
    finally:
        with closing(login(evil, "admin")) as connection:
            apply_schema(connection)
    attack(evil, f"{procedure} mended", path)


def test_whatever_runs_as_the_owner_has_a_fixed_search_path(raw: Database):
    definers = raw.rows(
        "select proname, proowner::regrole::text,"
        " 'search_path=pg_catalog, pg_temp' = any (proconfig)"
        " from pg_proc where pronamespace = 'token_tracking_raw'::regnamespace and prosecdef"
    )
    assert len(definers) >= 5
    assert {row[1:] for row in definers} == {("token_tracking_owner", True)}


def rights(database: Database) -> list[tuple]:
    """Return the owners and privileges of all objects."""
    return database.rows(
        "select oid::regclass::text, relowner::regrole::text, relacl::text from pg_class"
        " where relnamespace::regnamespace::text like 'token_tracking%'"
        " union all select oid::regprocedure::text, proowner::regrole::text, proacl::text"
        " from pg_proc where pronamespace::regnamespace::text like 'token_tracking%'"
        " union all select nspname, nspowner::regrole::text, nspacl::text from pg_namespace"
        " where nspname like 'token_tracking%' order by 1"
    )


def test_applying_again_changes_nothing(raw: Database):
    before = rights(raw)
    assert len(before) > 20
    for apply in (Roles().apply, apply_schema, Roles().apply):
        with closing(login(raw, "admin")) as connection:
            apply(connection)
        assert rights(raw) == before
    # A superuser's apply leaves no object owned by the superuser.
    execute(raw, "drop function token_tracking_raw.void_token_usage")
    with closing(raw.connect()) as connection:
        Roles().apply(connection)
    assert rights(raw) == before


def test_who_may_not_is_told_what_it_takes(raw: Database):
    for user, roles in (("service", Roles()), ("service", Roles("other_"))):
        with (
            closing(login(raw, user)) as connection,
            pytest.raises(SchemaError, match="CREATEROLE and CREATE on the database"),
        ):
            roles.apply(connection)
    with closing(login(raw, "admin")) as connection:
        with pytest.raises(SchemaError, match="too long"):
            Roles("p" * 51).apply(connection)
        execute(raw, "create role mighty_analyst bypassrls")
        with pytest.raises(SchemaError, match="mighty_analyst exists and can do more"):
            Roles("mighty_").apply(connection)
        execute(raw, "drop role mighty_analyst")


def test_many_at_once_in_two_databases(raw: Database):
    url = raw.url.replace("/raw?", "/{}?")
    execute(raw, "create database one owner admin", "create database two owner admin")
    failures: list[Exception] = []

    def apply(name: str) -> None:
        try:
            with closing(psycopg.connect(url.format(name), user="admin")) as connection:
                Roles("many_", "warehouse").apply(connection)
                connection.commit()
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=apply, args=(name,)) for name in ("one", "two") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    execute(raw, "drop database one", "drop database two")
    execute(raw, *(f"drop role {role}" for role in Roles("many_").names.values()))
    assert failures == []


def test_what_one_role_had_made_is_taken_over(raw: Database):
    url = raw.url.replace("/raw?", "/before?")
    before = Database(url, {**raw.env, "PGDATABASE": "before"})
    execute(raw, "create role founder login", "create database before owner founder")
    with closing(login(before, "founder")) as connection:
        apply_schema(connection)
        for statement in (
            "create schema token_tracking",
            "create type token_tracking.token_type as enum ('llm')",
            "create table token_tracking.daily_token_usage (of token_tracking.token_type)",
            "create view token_tracking.mine as select * from token_tracking.daily_token_usage",
        ):
            connection.execute(statement)
    execute(before, "create table token_tracking.somebody_elses ()")
    ended = run("schema", "apply", "--roles", "--role-prefix", "after_", env=before.env)
    assert (ended.code, ended.err) == (0, "")
    assert "roles: after_owner, after_writer, after_transformer" in ended.out
    owners = (
        "select relname, relowner::regrole::text from pg_class"
        " where relnamespace = 'token_tracking'::regnamespace"
        " union select typname, typowner::regrole::text from pg_type where typname = 'token_type'"
    )
    assert dict(before.rows(owners)) == {
        "daily_token_usage": "after_transformer",
        "mine": "after_transformer",
        "token_type": "after_transformer",
        "somebody_elses": "postgres",
    }
    owners = (
        "select distinct relowner::regrole::text from pg_class"
        " where relnamespace = 'token_tracking_raw'::regnamespace"
    )
    assert before.rows(owners) == [("after_owner",)]
    execute(raw, "drop database before", "drop role founder")
    execute(raw, *(f"drop role {role}" for role in Roles("after_").names.values()))


def test_what_others_were_granted_by_name_is_taken_and_told(raw: Database):
    """Like in a database that services wrote to before the roles existed, one with grant option."""
    schema = "token_tracking_raw"
    others = ("clerk", "old service", "stranger")
    execute(raw, *(f'create role "{name}" login' for name in others))
    execute(
        raw,
        f'grant usage, create on schema {schema} to "old service", stranger, clerk',
        f'grant select, update on {schema}.usage_events to "old service" with grant option',
        f'grant execute on all routines in schema {schema} to "old service"',
        f"grant select (tokens), insert (tokens) on {schema}.usage_events to clerk",
    )
    execute(raw, f"grant select, update on {schema}.usage_events to stranger", user="old service")
    before = rights(raw)
    try:
        with closing(login(raw, "stranger")) as connection:
            connection.execute("update token_tracking_raw.usage_events set tokens = tokens")
        with closing(login(raw, "admin")) as connection:
            assert Roles().apply(connection).taken_from == others
            assert Roles().apply(connection).taken_from == ()
        assert rights(raw) != before
        for name in others:
            with closing(login(raw, name)) as connection:
                for statement in (
                    "select tokens from token_tracking_raw.usage_events",
                    "update token_tracking_raw.usage_events set tokens = 0",
                    "insert into token_tracking_raw.usage_events (tokens) values (1)",
                    "select token_tracking_raw.json_kind('1')",
                    "create table token_tracking_raw.mine ()",
                ):
                    with pytest.raises(DENIED):
                        connection.execute(statement)  # type: ignore[arg-type]
            assert not raw.value(
                "select bool_or(has_table_privilege(%s, oid, 'select, insert, update')"
                " or has_any_column_privilege(%s, oid, 'select, insert, update')) from pg_class"
                " where relnamespace = 'token_tracking_raw'::regnamespace and relkind = 'r'",
                (name, name),
            )
        ended = run("schema", "apply", "--roles", env=raw.env)
        assert (ended.code, ended.err) == (0, "")
        execute(raw, f"grant usage on schema {schema} to clerk")
        ended = run("schema", "apply", "--roles", env={**raw.env, "COLUMNS": "200"})
        assert "Warning: rights in token_tracking_raw were taken from clerk" in ended.err
    finally:
        execute(raw, *(f'drop owned by "{name}"; drop role "{name}"' for name in others))


def test_services_that_write_already_go_on_writing(raw: Database):
    """In the order of docs/roles.md: group and membership first, then the group's privileges."""
    before = Database(raw.url.replace("/raw?", "/order?"), {**raw.env, "PGDATABASE": "order"})
    execute(raw, 'create database "order" owner admin')
    call = "select token_tracking_raw.track_token_usage('acme', 5)"
    with closing(login(before, "admin")) as connection:
        apply_schema(connection)
        connection.execute("create role running login")
        connection.execute("grant usage on schema token_tracking_raw to running")
        connection.execute("grant execute on all routines in schema token_tracking_raw to running")
    try:
        with closing(login(before, "running")) as service:
            assert service.execute(call).fetchone() == (True,)
            with closing(login(before, "admin")) as connection:
                connection.execute("create role order_writer nologin")
                connection.execute("grant order_writer to running")
                assert Roles("order_").apply(connection).taken_from == ("running",)
            assert service.execute(call).fetchone() == (True,)
    finally:
        execute(raw, 'drop database "order" with (force)', "drop role running")
        execute(raw, *(f"drop role {role}" for role in Roles("order_").names.values()))


def test_the_schemas_owner_upgrades_without_other_rights(raw: Database):
    """Like after a change of ownership: the upgrading role is only a member of the owner."""
    execute(raw, "create role upgrader login in role token_tracking_owner")
    try:
        with closing(login(raw, "upgrader")) as connection:
            apply_schema(connection)
    finally:
        execute(raw, "drop role upgrader")
