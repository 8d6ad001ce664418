"""Every wait in the code that a service runs, with the waiting thread and what ends the wait.

A wait that is not listed here fails the test, and so does an entry without its wait: whoever adds a
wait has to state why it ends. Callers only await, or wait for a time bounded by the client's own
clock; work that may take as long as a disk, a network or a log handler is left to its threads.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from tests.support import ROOT

PACKAGE = ROOT / "ingest" / "token_tracking"
WAITS = {"acquire", "join", "wait", "wait_for", "result", "sleep", "flock", "fsync", "checkpoint"}
WAITS |= {"connect", "connect_start", "import_module", "start_thread", "wait_until_flushed"}

CALLER = "a caller's thread"
OURS = "a thread of ours"

SHORT = "held for a few statements, none of which waits"
GATE = "only a fork is waited for, a second at most"
DISK = "the disk, or forever: its callers were told at their bound"
IMPORT = "the imports of others: its callers were told at their bound"

# Module, function and waiting call: the waiting thread, and what ends the wait.
KNOWN: dict[tuple[str, str, str], tuple[str, str]] = {
    ("__init__", "__getattr__", "import_module"): (
        CALLER,
        "the import of this package itself, by the service's own import or first use of a name",
    ),
    # Callers.
    ("forks", "PostponedForks.__enter__", "self._forking.acquire"): (CALLER, "BRIEF_SECONDS"),
    ("forks", "PostponedForks.before", "self._forking.acquire"): (
        CALLER,
        "BRIEF_SECONDS, at a fork",
    ),
    ("forks", "PostponedForks.before", "time.sleep"): (CALLER, "BRIEF_SECONDS, at a fork"),
    ("logs", "Speaker.say", "written.acquire"): (
        CALLER,
        "2 ms on a loop, else 0.2 s; once while a handler hangs (the first one, its own new lock)",
    ),
    ("logs", "Speaker.finish", "time.sleep"): (CALLER, "BRIEF_SECONDS, at exit"),
    ("logs", "Speaker._start", "start_thread"): (CALLER, "the start of a thread"),
    ("requests", "BlockingFuture.__init__", "self._given.acquire"): (CALLER, "its own new lock"),
    ("requests", "BlockingFuture.result", "self._given.acquire"): (
        CALLER,
        "max_wait: the watch tells it, which does nothing else and writes no log line",
    ),
    ("runtimes", "start_thread", "thread.start"): (CALLER, "the start of a thread"),
    ("runtimes", "TrioFuture.__await__", "self._event.wait"): (CALLER, "max_wait, awaited"),
    ("runtimes", "TrioFuture.__await__", "self.result"): (CALLER, "it is done"),
    ("runtimes", "next_turn", "trio.lowlevel.checkpoint"): (CALLER, "one turn, awaited"),
    ("runtimes", "next_turn", "asyncio.sleep"): (CALLER, "one turn, awaited"),
    ("tracker", "_settled", "entry.result"): (CALLER, "max_wait: see BlockingFuture.result"),
    ("tracker", "_all_settled", "entry.result"): (CALLER, "it is done"),
    ("worker", "Worker.__init__", "self._bell.acquire"): (CALLER, "its own new lock"),
    ("worker", "Worker.start", "time.sleep"): (CALLER, "until the thread has begun or ended"),
    ("worker", "Worker.start", "start_thread"): (CALLER, "the start of a thread"),
    ("worker", "Worker.join", "thread.join"): (CALLER, "the caller's timeout"),
    ("writer", "Writer.start", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.start", "self._tried.wait"): (CALLER, "max_wait"),
    ("writer", "Writer.submit", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.count", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.note", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.noted", "self._submitting"): (CALLER, SHORT),
    **{
        ("instrument", "_undo_of", f"import .{name}"): (
            CALLER,
            "the import of this package itself, when a client is instrumented",
        )
        for name in ("bedrock", "google", "mistral", "openai_anthropic")
    },
    ("writer", "Writer.outcomes", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.close", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.close", "self._worker.join"): (CALLER, "the timeout of close"),
    ("writer", "Writer.close", "self._recovery.wait_until_flushed"): (CALLER, "that timeout"),
    ("writer", "Writer.close", "self._watch.join"): (CALLER, "that timeout, and 0.1 s"),
    ("writer", "Writer.end", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer.drop", "self._submitting"): (CALLER, SHORT),
    ("writer", "Writer._write_at_end", "self._submitting"): (CALLER, SHORT),
    ("writer", "LastWriter.write", "self._writing.acquire"): (CALLER, "max_wait, at exit"),
    ("writer", "LastWriter.write", "worker.join"): (
        CALLER,
        "max_wait, at exit; where no thread starts any more, as long as libpq and the disk take",
    ),
    ("fallback", "Fallback.answer_late", "self._taking"): (CALLER, f"{SHORT}; of close, the watch"),
    ("fallback", "Fallback.close", "self._worker.join"): (CALLER, "the timeout of close"),
    ("recovery", "Recovery.wait_until_flushed", "self._changed"): (CALLER, SHORT),
    ("recovery", "Recovery.wait_until_flushed", "self._changed.wait_for"): (
        CALLER,
        "a second without progress, and the timeout of close",
    ),
    ("recovery", "Recovery.stop", "self._changed"): (CALLER, SHORT),
    ("recovery", "Recovery.stop", "self._worker.join"): (CALLER, "a second of close's timeout"),
    # The client's own threads, and the command line.
    ("logs", "Speaker._write", "forks.postponed"): (OURS, GATE),
    ("logs", "Speaker._run", "self._seat.acquire"): (OURS, "not at all: blocking=False"),
    ("worker", "Worker._run", "self._seat.acquire"): (OURS, "not at all: blocking=False"),
    ("logs", "SafeLogger._log", "forks.postponed"): (OURS, f"{GATE}; callers hand lines over"),
    ("worker", "Worker.wait", "self._bell.acquire"): (OURS, "until there is something to do"),
    ("worker", "Worker._has_more", "time.sleep"): (OURS, "10 ms"),
    ("fallback", "Fallback._step", "self._taking"): (OURS, SHORT),
    ("fallback", "Fallback._step", "self._worker.wait"): (OURS, "until there is something to do"),
    ("settings", "NamedFunction.found", "import_module"): (
        OURS,
        "the import, of the fallback alone",
    ),
    ("writer", "Writer._step", "self._worker.wait"): (OURS, "until there is something to do"),
    ("writer", "Writer._settle", "self._settling"): (OURS, SHORT),
    ("writer", "Writer._count", "self._settling"): (OURS, SHORT),
    ("writer", "Writer._answer_late", "self._settling"): (OURS, SHORT),
    ("writer", "Writer._answer_late", "self._watch.wait"): (OURS, "until the next bound"),
    ("writer", "Writer._send", "time.sleep"): (OURS, "the batch's deadline"),
    ("writer", "LastWriter._send", "self._connect"): (OURS, "patience, and the name server"),
    ("recovery", "UncertainRequests.append", "self._changing"): (OURS, SHORT),
    ("recovery", "UncertainRequests.oldest", "self._changing"): (OURS, SHORT),
    ("recovery", "UncertainRequests.forget", "self._changing"): (OURS, SHORT),
    ("recovery", "UncertainRequests.drop", "self._changing"): (OURS, SHORT),
    ("recovery", "Recovery.connection", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery.connection", "self._changed.wait"): (OURS, "the batch's deadline"),
    ("recovery", "Recovery.failed", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery.spooled", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery.count_flushed", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery._step", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery._step", "self._changed.wait_for"): (OURS, "30 s"),
    ("recovery", "Recovery._reconnected", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery._probed", "self._connect"): (OURS, "patience, and the name server"),
    ("recovery", "Recovery._send_waiting", "self._changed"): (OURS, SHORT),
    ("recovery", "Recovery._send_waiting", "self._connect"): (
        OURS,
        "patience, and the name server",
    ),
    ("recovery", "Recovery._let_go", "self._changed"): (OURS, SHORT),
    ("recovery", "_send", "time.sleep"): (OURS, "ten attempts, 0.1 s each"),
    ("connection", "Connection.open", "cls.connect"): (OURS, "patience, and the name server"),
    ("connection", "Connection.wait", "super().wait"): (OURS, "patience"),
    ("connection", "Connection.end_of_record", "self.wait"): (OURS, "patience"),
    ("connection", "Connection.prepare", "self.wait"): (OURS, "patience"),
    ("target", "_resolved", "PGconn.connect_start"): (OURS, "it fails before it looks up a name"),
    ("tracker", "UsageTracker.__init__", "import_module"): (
        CALLER,
        "the driver's import, where a service makes a tracker outside of a loop; no call does",
    ),
    ("destination", "spool_folder_of", "import ..target"): (OURS, IMPORT),
    ("destination", "spool_folder_of", "forks.postponed"): (OURS, GATE),
    ("destination", "connect", "import .connection"): (OURS, IMPORT),
    ("destination", "connect", "forks.postponed"): (OURS, GATE),
    ("writer", "_close_at_end_of_child", "import multiprocessing.util"): (
        CALLER,
        "nothing: a child of multiprocessing has imported it",
    ),
    ("spool", "Spool.create", "forks.postponed"): (OURS, GATE),
    ("spool", "Spool.adopt", "forks.postponed"): (OURS, GATE),
    ("spool", "_opened", "sqlite3.connect"): (OURS, DISK),
    ("damage", "read_only", "sqlite3.connect"): (OURS, DISK),
    ("damage", "_copy", "os.fsync"): (OURS, DISK),
    ("spool", "_take_lock", "fcntl.flock"): (OURS, "not at all: LOCK_NB"),
    ("spool", "Spool.is_gone", "forks.postponed"): (OURS, GATE),
    ("spool", "Spool._writing", "self._connection"): (OURS, DISK),
    ("folder", "sync_folder", "os.fsync"): (OURS, DISK),
    ("recovery", "Recovery.set_aside", "self._changed"): (OURS, SHORT),
}
for _name in ("begin_pass", "end_pass", "is_due", "put_off", "keep", "got_through"):
    KNOWN["held_keys", f"HeldKeys.{_name}", "self._changing"] = OURS, SHORT
KNOWN["held_keys", "HeldKeys.seconds_until_due", "self._changing"] = OURS, SHORT
for _name in ("_writing", "_rows", "is_empty", "close"):
    KNOWN["spool", f"Spool.{_name}", "forks.postponed"] = OURS, GATE
    KNOWN["spool", f"Spool.{_name}", "self._using"] = OURS, DISK


class Finder(ast.NodeVisitor):
    """Collects what may wait: calls by name, `with` of objects made elsewhere, late imports."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.place: list[str] = []
        self.depth = 0
        self.found: set[tuple[str, str, str]] = set()

    def take(self, what: str) -> None:
        self.found.add((self.module, ".".join(self.place), what))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.place.append(node.name)
        self.generic_visit(node)
        self.place.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        # An inner function counts as part of the outer one.
        if not self.depth:
            self.place.append(node.name)
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        if not self.depth:
            self.place.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Import(self, node: ast.Import) -> None:
        if self.depth:
            self.take(f"import {node.names[0].name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if self.depth:
            self.take(f"import {'.' * node.level}{node.module}")

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if isinstance(item.context_expr, ast.Name | ast.Attribute):
                self.take(ast.unparse(item.context_expr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        name = getattr(called, "attr", None) or getattr(called, "id", "")
        of_text = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Constant)
        if (name in WAITS or name == "_connect") and not of_text:
            self.take(ast.unparse(called))
        if name == "start" and ast.unparse(called) == "thread.start":
            self.take("thread.start")
        self.generic_visit(node)


def waits(source: str, module: str) -> set[tuple[str, str, str]]:
    finder = Finder(module)
    finder.visit(ast.parse(source))
    return finder.found


def modules_of_the_client() -> dict[str, Path]:
    """Return what a call can reach, by its last name, or by two where two modules have it.

    Without command line, load and report.
    """
    found: set[Path] = set()
    waiting = [PACKAGE / "__init__.py", PACKAGE / "default.py"]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = [folder / one.name for one in node.names] if folder.is_dir() else [folder]
                files = [name.with_suffix(".py") for name in names]
                waiting += [file for file in files if file.is_file() and file not in found]
    names = Counter(path.stem for path in found)
    return {
        path.stem if names[path.stem] == 1 else f"{path.parent.name}/{path.stem}": path
        for path in found
    }


def test_every_wait_is_known_with_what_ends_it():
    modules = modules_of_the_client()
    assert {"writer", "recovery", "spool", "connection", "target", "fallback"} < modules.keys()
    found = set().union(*(waits(path.read_text(), name) for name, path in modules.items()))
    assert found - KNOWN.keys() == set(), "say in KNOWN who waits there, and what ends it"
    assert KNOWN.keys() - found == set(), "these waits are gone"


def test_a_new_wait_is_found():
    source = """
class Writer:
    def submit(self):
        import psycopg
        with self._lock, closing(self._file):
            def inner():
                self._done.wait()
            return ", ".join([str(other.result(timeout=3)), thread.join()])
"""
    assert waits(source, "writer") == {
        ("writer", "Writer.submit", what)
        for what in ("import psycopg", "self._lock", "self._done.wait", "other.result")
    } | {("writer", "Writer.submit", "thread.join")}
