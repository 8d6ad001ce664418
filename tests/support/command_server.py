"""Starts commands without the seconds that their imports take: each is a fork of one process.

`python command_server.py SOCKET PID` serves until that process ends; `launch.py` stands for the
command.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Enough for any environment and arguments.
_MOST_BYTES = 1 << 22


# Of these, some import the next ones only when they run.
MODULES = (
    # Nothing is parsed here: dbt's parser keeps what a fork would wait for.
    "dbt.adapters.postgres",
    "dbt.cli.main",
    "dbt.parser.manifest",
    "dbt.plugins",
    "genai_prices.data",
    "jsonschema",
    "token_tracking.cli.command_line",
    "token_tracking.demo.demo",
    "token_tracking.loading.load",
    "token_tracking.loading.undo",
    "token_tracking.pricing.names",
    "token_tracking.report.page",
    "token_tracking.tracker",
    "token_tracking.validation.checkpoint",
    "token_tracking.validation.docs",
)


def _import_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dbt and Great Expectations
        for module in MODULES:
            importlib.import_module(module)


def serve(place: Path, served: int) -> None:
    """Start a process for each connection; when one of the two ends, end the other."""
    try:
        _import_all()
    except BaseException:
        shutil.rmtree(place.parent)  # so that nobody waits
        raise
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen(64)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    running: dict[int, socket.socket] = {}
    while Path(f"/proc/{served}").exists():
        for fd, _ in poll.poll(20 if running else 500):
            if fd == listener.fileno():
                caller, _ = listener.accept()
                pid = os.fork()
                if pid == 0:
                    for other in (listener, *running.values()):
                        other.close()
                    _become(caller)
                running[pid] = caller
                poll.register(caller, select.POLLRDHUP)
            else:  # the caller was killed
                poll.unregister(fd)
                [pid] = [pid for pid, caller in running.items() if caller.fileno() == fd]
                os.kill(pid, signal.SIGKILL)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            caller = running.pop(pid)
            with contextlib.suppress(KeyError):
                poll.unregister(caller)
            with contextlib.suppress(OSError):
                caller.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            caller.close()
    shutil.rmtree(place.parent)


def _become(caller: socket.socket) -> None:
    """Become the command that the caller asks for, with its streams."""
    fds = array.array("i", [0, 0, 0])
    text, [(_, _, sent)], *_ = caller.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(len(fds) * 4))
    fds.frombytes(sent[: len(fds) * 4])
    for wanted, fd in enumerate(list(fds)[-3:]):
        os.dup2(fd, wanted)
        os.close(fd)
    while not text.endswith(b"\n"):
        text += caller.recv(_MOST_BYTES)
    asked = json.loads(text)
    caller.sendall(f"{os.getpid()}\n".encode())
    caller.close()
    os.environ.clear()
    os.environ.update(asked["env"])
    # What an interpreter reads of them when it starts.
    time.tzset()
    tempfile.tempdir = None
    warnings.resetwarnings()
    warnings._processoptions(asked["env"].get("PYTHONWARNINGS", "default").split(","))
    os.chdir(asked["folder"])
    sys.argv = asked["words"]
    for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        raw = open(fd, "rb" if fd == 0 else "wb", closefd=False)  # noqa: SIM115
        errors = "backslashreplace" if fd == 2 else "strict"
        is_lively = fd == 2 or (fd == 1 and os.isatty(1))
        stream = io.TextIOWrapper(raw, "utf-8", errors, line_buffering=is_lively)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if sys.argv[0] == "dbt":
        from dbt.cli.main import cli as main
    else:
        from token_tracking.cli import main

    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # As the interpreter ends, but without taking apart all that was imported.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    # As the first of sys.path, this folder would hide modules of the library.
    sys.path[0] = str(ROOT)
    serve(Path(sys.argv[1]), int(sys.argv[2]))
