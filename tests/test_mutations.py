"""The tests can fail: each of these faults, put into a copy of the package, is caught.

A fault is text that must be there and what stands there instead; the test is the one that has to
catch it.
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

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ingest" / "token_tracking"

SORTED = 'sorted(events, key=attrgetter("order"))'
SQL_ORDER = """
    order by event.tenant_id collate "C", event.idempotency_key collate "C", event.place
"""

SQL_ORDER_CANONICAL = """
                order by
                    written.tenant_id collate "C",
                    written.idempotency_key collate "C",
                    written.position
"""
SQL_DISTINCT = ' distinct on (written.tenant_id collate "C", written.idempotency_key collate "C")'

# Name: test, then (file, text, what stands there instead) ...
FAULTS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "acknowledged before anything is durable": (
        "test_tracker.py::test_with_neither_database_nor_spool_a_call_is_told_false",
        [
            (
                "writer.py",
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
                "recovery.py",
                "        delivery = Delivery(request for _, request in batch)\n",
                "        delivery = Delivery(request for _, request in batch)\n"
                "        source.forget([number for number, _ in batch])\n",
            )
        ],
    ),
    "a key for each attempt": (
        "test_faults.py::test_an_answer_lost_after_its_commit_counts_once",
        [
            (
                "delivery.py",
                "[event.payload for event in events]",
                "[event.payload.replace(b'key\":\"', b'key\":\"%d' % self.attempts)"
                " for event in events]",
            )
        ],
    ),
    "no order on either side": (
        "test_delivery.py::test_writers_that_share_keys_never_deadlock",
        [
            ("delivery.py", SORTED, "events"),
            ("sql/procedures.sql", SQL_ORDER, "\n"),
            ("sql/procedures.sql", SQL_ORDER_CANONICAL, "\n"),
            ("sql/procedures.sql", SQL_DISTINCT, ""),
        ],
    ),
    "a spool that does not wait for the disk": (
        "test_delivery.py::test_the_spool_waits_for_the_disk_at_each_commit",
        [("spool.py", "pragma synchronous = full", "pragma synchronous = normal")],
    ),
    "the parent's writer in a forked child": (
        "test_spool.py::test_a_forked_child_has_a_tracker_of_its_own",
        [("writer.py", "        writer.start_anew_after_fork()", "        pass")],
    ),
    "a child that unlocks its parent's spool": (
        "test_spool.py::test_a_fork_during_an_outage_leaves_the_parent_its_spool",
        [
            (
                "spool.py",
                "        os.close(self._lock)  # closed and not unlocked",
                "        fcntl.flock(self._lock, fcntl.LOCK_UN)  #",
            )
        ],
    ),
    "a child that keeps its parent's lock": (
        "test_fork.py::test_a_child_that_lives_on_leaves_the_spool_to_others",
        [
            (
                "spool.py",
                "        os.close(self._lock)  # closed and not unlocked",
                "        pass  #",
            )
        ],
    ),
    "the fallback for what may be committed": (
        "test_faults.py::test_an_event_that_may_be_committed_never_reaches_the_fallback",
        [("writer.py", "                or request.uncertain\n", "")],
    ),
    "a later attempt decides what an earlier one did": (
        "test_faults.py::test_a_later_attempt_says_nothing_about_an_earlier_one",
        [
            (
                "delivery.py",
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
                "delivery.py",
                "                self._refuse(database, part[0], error)\n",
                "                self._events.pop()\n"
                "                self._refuse(database, part[0], error)\n"
                "                continue\n",
            )
        ],
    ),
    "no deadline of our own": (
        "test_faults.py::test_a_server_that_accepts_and_never_answers",
        [("database.py", "timeout if timeout is not None else self.patience", "None")],
    ),
    "what is ahead of the server's clock is sent": (
        "test_delivery.py::test_events_ahead_of_the_servers_clock_wait_until_it_has_come",
        [("delivery.py", "        self._hold_back(database.latest_occurrence())\n", "")],
    ),
    "nothing is written at the end": (
        "test_delivery.py::test_the_end_of_the_interpreter_writes_what_waits_in_any_tracker",
        [("writer.py", "atexit.register(_close_all)\n", "")],
    ),
    "a file is adopted while its owner lives": (
        "test_spool.py::test_a_file_is_adopted_only_when_its_process_has_ended",
        [("spool.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB")],
    ),
    "a queue without end": (
        "test_delivery.py::test_what_waits_in_memory_is_bounded_when_nobody_takes_anything",
        [("writer.py", "self._bytes_in - self._bytes_out + size > _MOST_BYTES or", "False or")],
    ),
    "Python takes what SQL refuses": (
        "test_properties.py::test_of_each_field_python_and_sql_have_one_opinion[occurred_at]",
        [("rules.py", "    if instant < EARLIEST:", "    if False:")],
    ),
    "a value's own error reaches the caller": (
        "test_delivery.py::test_values_that_fail_are_refused_and_kept_never_raised",
        [
            (
                "tracker.py",
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
        [("database.py", "for result in results:", "for result in results[:1]:")],
    ),
    "what is committed, and not told yet, is sent again": (
        "test_tracker.py::test_track_many_answers_in_order_for_any_number",
        [("writer.py", "self._committed[0] if self._committed else ()", "()")],
    ),
    "calls are counted when they are made": (
        "test_faults.py::test_a_thousand_cancelled_calls_are_all_recorded_and_counted",
        [
            (
                "writer.py",
                "        ended = delivery.outcomes\n",
                "        ended = Counter(a.outcome for r, a in delivery.answered"
                " if not r.future.cancelled())\n",
            )
        ],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(tmp_path: Path, name: str):
    test, changes = FAULTS[name]
    copy = tmp_path / "ingest" / "token_tracking"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, instead in changes:
        source = (copy / file).read_text()
        assert source.count(text) == 1, f"{text!r} is {source.count(text)} times in {file}"
        (copy / file).write_text(source.replace(text, instead))
    with (tmp_path / "said").open("w+") as said:
        run = subprocess.Popen(
            [
                sys.executable,
                *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=1"),
                *("--timeout", "10", "-o", "timeout_func_only=true"),
                f"--basetemp={tmp_path / 'run'}",  # nobody else tidies up in there
                f"tests/{test}",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(copy.parent)},
            stdout=said,  # and no pipe, which a child that hangs would keep open
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            run.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the fault left hanging
                os.killpg(run.pid, signal.SIGKILL)
        said.seek(0)
        text = said.read()
    assert run.returncode == 1, text
    assert "1 failed" in text, text
