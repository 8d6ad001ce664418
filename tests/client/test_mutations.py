"""Proof that the tests can fail: each of these faults, put into a copy of the package, is caught.

A fault is a text that must exist once and its replacement; the named test has to catch it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.databases import SHARED_BY, TEMPLATE, TEMPLATE_BY
from token_tracking.embedded.server import Server

PACKAGE = ROOT / "ingest" / "token_tracking"

SQL_ORDER = """
    order by
        (cleaned.event).tenant_id collate "C",
        (cleaned.event).idempotency_key collate "C",
        cleaned.place
"""

SQL_ORDER_CANONICAL = """
                order by
                    (cleaned.event).tenant_id collate "C",
                    (cleaned.event).idempotency_key collate "C",
                    cleaned.position
"""
SQL_DISTINCT = (
    " distinct on (\n"
    '                    (cleaned.event).tenant_id collate "C",'
    ' (cleaned.event).idempotency_key collate "C"\n'
    "                )"
)

# Name: test, then (file, text, replacement) ...
FAULTS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "acknowledged before anything is durable": (
        "test_tracker.py::test_with_neither_database_nor_spool_a_call_is_told_false",
        [
            (
                "client/writer.py",
                "        cause: str | None = None\n",
                "        cause: str | None = None\n"
                "        told = Answer(Outcome.SPOOLED)\n"
                "        deliver_answers([(request, told) for request in batch])\n",
            )
        ],
    ),
    "taken out of the queue before it is committed": (
        "test_delivery.py::test_what_is_spooled_stays_until_it_is_committed",
        [
            (
                "client/recovery.py",
                "        _send(delivery, database)\n        if aside",
                "        source.forget([number for number, _ in batch])\n"
                "        _send(delivery, database)\n        if aside",
            )
        ],
    ),
    "a key for each attempt": (
        "test_faults.py::test_an_answer_lost_after_its_commit_counts_once",
        [
            (
                "client/delivery.py",
                "[event.payload for event in events]",
                "[event.payload.replace(b'key\":\"', b'key\":\"%d' % self.attempts)"
                " for event in events]",
            )
        ],
    ),
    "a canonical batch takes its keys as they come": (
        "test_procedures.py::test_a_batch_takes_its_keys_in_their_order[embedded 18-canonical]",
        [
            ("raw/procedures/61_canonical_batch.sql", SQL_ORDER_CANONICAL, ""),
            ("raw/procedures/61_canonical_batch.sql", SQL_DISTINCT, ""),
        ],
    ),
    "any other batch takes its keys as they come": (
        "test_procedures.py::test_a_batch_takes_its_keys_in_their_order[embedded 18-dumps]",
        [("raw/procedures/62_batch.sql", SQL_ORDER, "\n")],
    ),
    "a spool that does not wait for the disk": (
        "test_delivery.py::test_the_spool_waits_for_the_disk_at_each_commit",
        [("client/spool/spool.py", "pragma synchronous = full", "pragma synchronous = normal")],
    ),
    "one name for the statements of all versions": (
        "test_named_statement.py::test_another_text_has_another_name",
        [("client/named_statement.py", "{sha256(self.text).hexdigest()[:32]}", "prepared")],
    ),
    "a pooler is told the name again after any error": (
        "test_named_statement.py::test_a_pooler_that_renames_is_not_told_twice",
        [("client/named_statement.py", "self.name not in (", "False and b'' in (")],
    ),
    "the parent's writer in a forked child": (
        "test_spool.py::test_a_forked_child_has_a_tracker_of_its_own",
        [("client/writer.py", "        writer.restart_after_fork()", "        pass")],
    ),
    "a child that unlocks its parent's spool": (
        "test_spool.py::test_a_fork_during_an_outage_leaves_the_parent_its_spool",
        [
            (
                "client/spool/spool.py",
                "        os.close(self._lock)  # closed and not unlocked",
                "        fcntl.flock(self._lock, fcntl.LOCK_UN)  #",
            )
        ],
    ),
    "a child that keeps its parent's lock": (
        "test_fork.py::test_a_child_that_lives_on_leaves_the_spool_to_others",
        [
            (
                "client/spool/spool.py",
                "        os.close(self._lock)  # closed and not unlocked",
                "        pass  #",
            )
        ],
    ),
    "the fallback for what may be committed": (
        "test_faults.py::test_what_may_be_committed_never_reaches_the_fallback",
        [("client/writer.py", "                or request.uncertain\n", "")],
    ),
    "a later attempt decides what an earlier one did": (
        "test_faults.py::test_a_later_attempt_says_nothing_about_an_earlier_one",
        [
            (
                "client/delivery.py",
                "            if state is None or fault_of(error, database) is Fault.UNKNOWN:\n"
                "                for request in requests:\n"
                "                    request.uncertain = True\n",
                "            for request in requests:\n"
                "                request.uncertain = fault_of(error, database) is Fault.UNKNOWN\n",
            )
        ],
    ),
    "poison is forgotten when its rejection cannot be written": (
        "test_delivery.py::test_a_rejection_whose_own_write_fails_stays_pending",
        [
            (
                "client/delivery.py",
                "                    self._refuse(database, part[0], error)\n",
                "                    self._events.pop()\n"
                "                    self._refuse(database, part[0], error)\n"
                "                    continue\n",
            )
        ],
    ),
    "no deadline of our own": (
        "test_faults.py::test_a_server_that_accepts_and_never_answers",
        [("client/connection.py", "timeout if timeout is not None else self.patience", "None")],
    ),
    "what is ahead of the server's clock is sent": (
        "test_delivery.py::test_events_ahead_of_the_servers_clock_wait",
        [
            ("client/delivery.py", "if event.occurred_at() > latest]", "if False]"),
            ("client/delivery.py", 'problem.kind == "early" and', "False and"),
        ],
    ),
    "what a server whose clock was set back refuses is not sent again": (
        "test_server_clock.py::test_the_servers_clock_set_back_in_a_flush_refuses_nothing",
        [("client/delivery.py", 'problem.kind == "early" and', "False and")],
    ),
    "a server keeps what is early as refused": (
        "test_server_clock.py::test_a_clock_set_under_a_connection_refuses_nothing",
        [("raw/procedures/62_batch.sql", "        where refused.kind = 'rejection'\n", "")],
    ),
    "a server's clock is asked for once": (
        "test_server_clock.py::test_a_clock_set_under_a_connection_refuses_nothing",
        [
            (
                "client/delivery.py",
                "if time.monotonic() - database.compared_at > _COMPARE_AGAIN_SECONDS:",
                "if False:",
            )
        ],
    ),
    "what waits for a lock is tried until the bound": (
        "test_held_locks.py::test_a_held_key_sends_no_other_event_to_the_spool",
        [("client/delivery.py", "        return Fault.WAITING", "        return Fault.PASSING")],
    ),
    "a later owner does not wait behind an earlier one": (
        "test_held_locks.py::test_a_later_owner_waits_behind_an_earlier_one",
        [
            (
                "client/delivery.py",
                "        self._leave(same)\n        return True",
                "        return False",
            )
        ],
    ),
    "a flush stops at what waits": (
        "test_held_locks.py::test_a_flush_passes_by_what_waits",
        [
            (
                "client/delivery.py",
                "            if self._put_off(part, error, waited_briefly):\n",
                "            raise error\n",
            ),
            ("client/delivery.py", "                self._events.pop()\n            return\n", ""),
        ],
    ),
    "nothing is written at the end": (
        "test_delivery.py::test_the_interpreters_end_writes_what_waits",
        [("client/writer.py", "atexit.register(_close_all)\n", "")],
    ),
    "a file is adopted while its owner lives": (
        "test_spool.py::test_a_file_is_adopted_only_when_its_process_has_ended",
        [
            (
                "client/spool/spool.py",
                "fcntl.LOCK_EX | fcntl.LOCK_NB",
                "fcntl.LOCK_SH | fcntl.LOCK_NB",
            )
        ],
    ),
    "a file that others can write is adopted": (
        "test_spool_folder.py::test_what_others_could_have_written_is_not_sent[others write it]",
        [("client/spool/folder.py", "    if found.st_mode & _OTHERS_WRITE:", "    if False:")],
    ),
    "whatever SQLite has opened is taken": (
        "test_spool_folder.py::test_a_file_swapped_while_it_is_opened_is_refused",
        [("client/spool/folder.py", "        if not missing:\n", "        if True:\n")],
    ),
    "a damaged log is taken for its end": (
        "test_spool_folder.py::test_a_service_tells_a_damaged_log_once",
        [
            (
                "client/spool/spool.py",
                "                keep_what_is_missing(path, Acknowledged(lock))\n",
                "",
            )
        ],
    ),
    "who looks at a damaged log ends it": (
        "test_spool_folder.py::test_a_log_damaged_after_its_process_is_kept_and_told",
        [("client/spool/damage.py", "?mode=ro", "?mode=rw")],
    ),
    "a number is noted before its commit": (
        "test_spool_folder.py::test_an_append_that_fails_notes_nothing",
        [
            (
                "client/spool/spool.py",
                "                    last = added.lastrowid\n",
                "                    self._acknowledged.note(added.lastrowid or 0)\n",
            )
        ],
    ),
    "what was moved to a new file is missing": (
        "test_spool_folder.py::test_what_was_moved_to_a_new_file_is_not_missing",
        [("client/spool/spool.py", "        self._acknowledged.note(0)\n", "")],
    ),
    "a row that the disk has changed is sent": (
        "test_spool_folder.py::test_a_changed_row_is_neither_sent_nor_refused",
        [
            (
                "client/spool/spool.py",
                "if kept not in {None, checksum(kind.encode(errors=_AS_BYTES), content)}:",
                "if False:",
            )
        ],
    ),
    "a changed spool file is taken for ours": (
        "test_spool_folder.py"
        "::test_a_changed_spool_file_is_left_for_a_new_one[one bit of the log flipped]",
        [("client/spool/spool.py", "seen != self._looks or seen[0] is None", "seen[0] is None")],
    ),
    "what waits for another database is sent": (
        "test_spool_folder.py::test_what_waits_is_sent_to_no_other_database[another database]",
        [("client/spool/folder.py", "known == identity and reached", "reached")],
    ),
    "what waits for a database is sent to a copy that is behind": (
        "test_spool_folder.py::test_what_waits_is_sent_to_no_other_database[a copy that is behind]",
        [("client/spool/folder.py", " and reached <= transaction", "")],
    ),
    "another host's lock is taken": (
        "test_spool_folder.py"
        "::test_another_hosts_lock_is_taken_only_where_it_is_seen[cifs-rw-False]",
        [("client/spool/folder.py", "if shared is None or not written", "if True or not written")],
    ),
    "a queue without end": (
        "test_delivery.py::test_what_waits_in_memory_is_bounded",
        [
            (
                "client/writer.py",
                "self._bytes_in - self._bytes_out + size > _MOST_BYTES or",
                "False or",
            )
        ],
    ),
    "Python takes what SQL refuses": (
        "test_properties.py::test_of_each_field_python_and_sql_have_one_opinion[occurred_at]",
        [("event/rules.py", "    if instant < EARLIEST:", "    if False:")],
    ),
    "labels without their letter v": (
        "test_postgres_versions.py::test_letters_v_stay_and_vertical_tabs_go",
        [("raw/procedures/50_events.sql", r"e' \t\n\r\f\x0b'", r"e' \t\n\r\fv'")],
    ),
    "an owner's revision that another one has": (
        "test_owners.py::test_a_writer_waits_for_a_row_of_its_instant_alone",
        [
            (
                "raw/procedures/70_corrections.sql",
                "        on conflict (agent_id, valid_from, revision) do nothing;",
                ";",
            )
        ],
    ),
    "a value's own error reaches the caller": (
        "test_delivery.py::test_values_that_fail_are_refused_and_kept_never_raised",
        [
            (
                "client/calls.py",
                "    except Exception as error:  # noqa: BLE001  # of the rules",
                "    except InvalidUsageError as error:  #",
            ),
            (
                "tracker.py",
                "        except Exception as error:  # noqa: BLE001  # the caller",
                "        except MemoryError as error:  #",
            ),
        ],
    ),
    "an error after the first result is not looked at": (
        "test_delivery.py::test_what_fails_at_the_commit_is_not_recorded",
        [("client/connection.py", "for result in results:", "for result in results[:1]:")],
    ),
    "what is committed, and not told yet, is sent again": (
        "test_tracker.py::test_track_many_answers_in_order_for_any_number",
        [("client/writer.py", "self._committed[0] if self._committed else ()", "()")],
    ),
    "a line waits for its handler": (
        "test_hangs.py::test_what_hangs_holds_nobody[a log handler, at a refused call on a loop]",
        [("client/logs.py", "_LOOP_SECONDS if is_in_task() else _CALL_SECONDS", "-1")],
    ),
    "the first call waits for an import": (
        "test_hangs.py::test_what_hangs_holds_nobody"
        "[imports of other threads, at the first call of all on a loop]",
        [
            (
                "default.py",
                "        return UsageTracker(settings=load_settings())\n",
                '        __import__("pydantic")\n'
                "        return UsageTracker(settings=load_settings())\n",
            )
        ],
    ),
    "a request that ended elsewhere goes on": (
        "test_context.py::test_a_worker_that_began_a_request_keeps_nothing_of_it",
        [
            (
                "client/context.py",
                "block.is_left = not _undone(block, token)",
                "_undone(block, token)",
            )
        ],
    ),
    "metadata costs the event": (
        "test_metadata.py::test_an_event_as_a_value_keeps_such_metadata_too",
        [("event/mended_metadata.py", "        why = error.reason\n", "        raise\n")],
    ),
    "trio is not known": (
        "test_runtimes.py::test_many_tasks_of_trio_wait_for_one_batch",
        [("client/runtimes.py", "        return TrioFuture(trio)\n", "        return None\n")],
    ),
    "nothing is written after the end": (
        "test_exit.py::test_a_call_at_the_end[a handler that is called after ours-up]",
        [("client/writer.py", "(refused is _CLOSED and self._ended)", "False")],
    ),
    "acknowledged at the end and kept nowhere": (
        "test_exit.py::test_a_call_at_the_end[a handler that is called after ours-down]",
        [("client/writer.py", "            self._spool.append([request])\n", "")],
    ),
    "calls are counted when they are made": (
        "test_faults.py::test_a_thousand_cancelled_calls_are_all_recorded",
        [
            (
                "client/writer.py",
                "        ended = delivery.outcomes\n",
                "        ended = Counter(a.outcome for r, a in delivery.answered"
                " if not r.future.cancelled())\n",
            )
        ],
    ),
}


BY_HYPOTHESIS = ("-p", "_hypothesis_pytestplugin", "--hypothesis-seed=1")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(tmp_path: Path, server: Server, name: str):
    test, changes = FAULTS[name]
    copy = tmp_path / "ingest" / "token_tracking"
    shutil.copytree(PACKAGE, copy)  # with what was compiled of the files that stay as they are
    for file, text, instead in changes:
        source = (copy / file).read_text()
        assert source.count(text) == 1, f"{text!r} is {source.count(text)} times in {file}"
        (copy / file).write_text(source.replace(text, instead))
    has_own_sql = any(file.startswith("raw/") for file, _, _ in changes)
    status, text = run_of(test, copy.parent, tmp_path, server, None if has_own_sql else TEMPLATE)
    assert status == 1, text
    assert "1 failed" in text, text


def run_of(
    test: str, package: Path, folder: Path, server: Server, template: str | None
) -> tuple[int, str]:
    """Run a test with that package; return its exit status and its output."""
    file, name = test.split("::")
    env = {
        **os.environ,
        "PYTHONPATH": str(package),
        SHARED_BY: str(server.data_dir),
        **({TEMPLATE_BY: template} if template else {}),
        # All of them take longer to import than most of these tests to run.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    with (folder / "said").open("w+") as said:
        run = subprocess.Popen(
            [
                sys.executable,
                *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
                *("-p", "pytest_timeout", "--timeout", "10", "-o", "timeout_func_only=true"),
                *(BY_HYPOTHESIS if file == "test_properties.py" else ()),
                f"--basetemp={folder / 'run'}",  # so that no other run removes it
                f"{next((ROOT / 'tests').rglob(file))}::{name}",
            ],
            cwd=ROOT,
            env=env,
            stdout=said,  # not a pipe, which a hanging child would keep open
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            run.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the fault left hanging
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        said.seek(0)
        return run.returncode, said.read()
