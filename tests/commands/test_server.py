"""The private server: started in a given folder, found again, and gone when it is stopped."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.databases import NOT_DURABLE
from token_tracking.embedded.server import LONGEST_SOCKET_PATH, Server
from token_tracking.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def stopped(open_folder: Path) -> Iterator[Server]:
    """A server that was never started."""
    server = Server(open_folder / "data", settings=NOT_DURABLE)
    yield server
    server.stop("immediate")


def value(server: Server, query: str) -> object:
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def test_a_server_is_started_found_and_stopped(stopped: Server):
    server = stopped
    assert not server.is_running()
    assert server.stop() is False
    with pytest.raises(ServerError, match="no server runs in"):
        server.url("postgres")

    server.start()
    pid = server.pid()
    server.start()
    other = Server(server.data_dir)
    assert (other.pid(), other.is_running()) == (pid, True)
    assert other.url("postgres") == server.url("postgres")
    assert value(server, "show listen_addresses") == ""
    assert value(server, "select current_user") == "postgres"

    assert other.stop() is True
    assert (server.pid(), server.is_running(), server.stop()) == (None, False, False)


def test_libpq_variables_lead_to_the_same_place_as_the_url(server: Server, monkeypatch):
    for name, setting in server.environment("template1").items():
        monkeypatch.setenv(name, setting)
    with closing(psycopg.connect()) as by_environment:
        assert by_environment.info.dbname == "template1"
        assert by_environment.info.host == server.host
        identity = "select system_identifier from pg_control_system()"
        row = by_environment.execute(identity).fetchone()
    assert row == (value(server, identity),)


def test_what_was_committed_survives_a_kill(stopped: Server):
    server = stopped
    server.start()
    with closing(psycopg.connect(server.url("postgres"), autocommit=True)) as connection:
        connection.execute("create table kept as select 7 as n")
    server.kill()
    assert not server.is_running()
    with pytest.raises(ServerError, match="no server runs"):
        _ = server.host
    server.start()
    assert value(server, "select n from kept") == 7


def test_a_killed_server_that_never_ran_is_nothing(stopped: Server):
    stopped.kill()
    assert not stopped.data_dir.exists()


def test_a_stale_pid_file_is_no_server(stopped: Server):
    stopped.data_dir.mkdir(mode=0o700)
    pid_file = stopped.data_dir / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{stopped.data_dir}\n0\n5432\n/tmp\n")
    assert not stopped.is_running()
    pid_file.unlink()


def test_why_a_server_does_not_start_is_in_the_error(open_folder: Path):
    broken = Server(open_folder / "data", settings={"work_mem": "plenty"})
    with pytest.raises(ServerError) as caught:
        broken.start()
    assert "pg_ctl failed" in str(caught.value)
    assert 'invalid value for parameter "work_mem"' in "\n".join(caught.value.__notes__)
    assert not broken.is_running()


def test_programs_that_are_not_there(open_folder: Path):
    with pytest.raises((ServerError, FileNotFoundError)):
        Server(open_folder / "data", open_folder / "no-programs").start()


def test_a_path_too_long_for_a_socket(open_folder: Path):
    deep = open_folder / ("long-" * 20) / "data"
    deep.parent.mkdir(parents=True)
    deep.parent.chmod(0o755)
    server = Server(deep, settings=NOT_DURABLE)
    try:
        server.start()
        assert len(f"{server.host}/.s.PGSQL.5432") <= LONGEST_SOCKET_PATH
        assert value(server, "select 1") == 1
        socket_folder = Path(server.host)
    finally:
        server.stop("immediate")
    shutil.rmtree(socket_folder, ignore_errors=True)


@pytest.mark.skipif(not AS_ROOT, reason="only root's server runs as somebody else")
def test_a_server_of_root_in_a_folder_that_only_root_can_enter(open_folder: Path):
    open_folder.chmod(0o700)
    server = Server(open_folder / "data", settings=NOT_DURABLE)
    try:
        server.start()
        assert value(server, "select 1") == 1
        real = server.data_dir.resolve()
        assert server.data_dir.is_symlink()
        assert real.is_relative_to("/var/tmp")
        assert real.stat().st_uid != 0
        assert open_folder.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop("immediate")
    shutil.rmtree(real.parent)


@pytest.mark.skipif(AS_ROOT, reason="as root the server's account owns the folder")
def test_the_folder_is_for_its_owner_alone(stopped: Server):
    stopped.start()
    assert stopped.data_dir.stat().st_mode & 0o777 == 0o700
