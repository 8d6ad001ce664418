"""A component that hangs delays no call beyond its bound, and the event loop not at all.

A preloaded library makes the disk or the name server hang while a file exists.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import left_out

HANGING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <unistd.h>

static void hang(const char *what) {
    const char *file = getenv(what);
    while (file && access(file, F_OK) == 0) usleep(10000);
}
int fsync(int fd) {
    hang("DISK_HANGS");
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
    hang("DISK_HANGS");
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    hang("NAMES_HANG");
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))
            dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""

# The beginning of every script here; `MAX_WAIT` is the bound of all its calls.
HEAD = """
import asyncio, json, logging, os, sys, threading, time
import token_tracking
from token_tracking import UsageTracker, track_token_usage, track_token_usage_sync
MAX_WAIT = float(os.environ["TOKEN_TRACKING_MAX_WAIT"])
longest = 0.0

async def heart():
    global longest
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        longest = max(longest, time.perf_counter() - before - 0.005)

def on_a_loop(call):
    async def main():
        beats = asyncio.create_task(heart())
        await asyncio.sleep(0.02)
        answer = await call()
        beats.cancel()
        return answer
    return asyncio.run(main())

def timed(call):
    started = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - started

def say(answer, took):
    print(json.dumps({"answer": answer, "took": took, "longest": longest}), flush=True)
    os._exit(0)

def hang(what):
    open(os.environ[what], "w").close()

def tracker_whose_disk_hangs():
    tracker = UsageTracker(dsn="host=/nonexistent", spool_dir=sys.argv[1] + "/a")
    assert tracker.track_token_usage_sync("a", 1) is True
    hang("DISK_HANGS")
    assert tracker.track_token_usage_sync("a", 1) is False
    return tracker
"""

# Each script with the call's answer, which it gets by the bound.
SCRIPTS = {
    "the disk, at the first call of all on a loop": (
        False,
        """
tracker = tracker_whose_disk_hangs()
say(*timed(lambda: on_a_loop(lambda: track_token_usage("a", 1))))
""",
    ),
    "the disk, at the first call of all": (
        False,
        """
tracker = tracker_whose_disk_hangs()
say(*timed(lambda: track_token_usage_sync("a", 1)))
""",
    ),
    "the disk, while another tracker is made": (
        None,
        """
tracker = tracker_whose_disk_hangs()
say(*timed(lambda: UsageTracker(max_wait=1) and None))
""",
    ),
    "the disk, at statistics": (
        None,
        """
tracker = tracker_whose_disk_hangs()
say(*timed(lambda: tracker.stats() and None))
""",
    ),
    "the disk, at the end of a tracker": (
        None,
        """
tracker = UsageTracker(dsn="host=/nonexistent", spool_dir=sys.argv[1] + "/a")
assert tracker.track_token_usage_sync("a", 1) is True
hang("DISK_HANGS")
say(*timed(lambda: tracker.close(MAX_WAIT)))
""",
    ),
    "the disk, at an awaited end": (
        None,
        """
tracker = tracker_whose_disk_hangs()
say(*timed(lambda: on_a_loop(lambda: tracker.aclose(MAX_WAIT))))
""",
    ),
    "the disk, at a fork": (
        0,
        """
tracker = tracker_whose_disk_hangs()
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
say(*timed(fork))
""",
    ),
    "the name server, at a call": (
        True,
        """
hang("NAMES_HANG")
os.environ["TOKEN_TRACKING_DSN"] = "host=database.example user=u dbname=d"
say(*timed(lambda: on_a_loop(lambda: track_token_usage("a", 1))))
""",
    ),
    "the name server, at the end": (
        None,
        """
hang("NAMES_HANG")
tracker = UsageTracker(dsn="host=database.example user=u dbname=d")
assert tracker.track_token_usage_sync("a", 1) is True
say(*timed(lambda: tracker.close(MAX_WAIT)))
""",
    ),
    "imports of other threads, at the first call of all on a loop": (
        True,
        """
class Hanging:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"psycopg", "pydantic"}:
            time.sleep(60)
sys.meta_path.insert(0, Hanging())
for name in ("psycopg", "pydantic"):
    threading.Thread(target=__import__, args=(name,), daemon=True).start()
time.sleep(0.1)
say(*timed(lambda: on_a_loop(lambda: track_token_usage("a", 1))))
""",
    ),
    "a log handler, at a refused call on a loop": (
        False,
        """
class Hanging(logging.Handler):
    def emit(self, record):
        time.sleep(60)
logging.getLogger("token_tracking").addHandler(Hanging())
tracker = UsageTracker(dsn="host=/nonexistent", spool_dir=sys.argv[1] + "/a")
tracker.close()
async def calls():
    return any([await tracker.track_token_usage("a", 1) for _ in range(100)])
say(*timed(lambda: on_a_loop(calls)))
""",
    ),
    "a log handler, at a refused call": (
        False,
        """
class Hanging(logging.Handler):
    def emit(self, record):
        time.sleep(60)
logging.getLogger().addHandler(Hanging())
say(*timed(lambda: any([track_token_usage_sync("", -1) for _ in range(3)])))
""",
    ),
}


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        left_out("there is no C compiler: apt-get install gcc")
    folder = tmp_path_factory.mktemp("hanging")
    (folder / "hanging.c").write_text(HANGING)
    library = folder / "hanging.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "hanging.c", "-ldl"], check=True
    )
    return library


@pytest.mark.timed
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_hangs_holds_nobody(hanging: Path, tmp_path: Path, name: str):
    expected, script = SCRIPTS[name]
    max_wait = 1.0
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script, str(tmp_path)],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "LD_PRELOAD": str(hanging),
            "DISK_HANGS": str(tmp_path / "disk hangs"),
            "NAMES_HANG": str(tmp_path / "names hang"),
            "TOKEN_TRACKING_DSN": "host=/nonexistent",
            "TOKEN_TRACKING_SPOOL_DIR": str(tmp_path / "spool"),
            "TOKEN_TRACKING_MAX_WAIT": str(max_wait),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answer"] == expected, done.stderr
    assert found["took"] < 2 * max_wait + 0.5, found
    # A thread that imports shares the processor, and each library is loaded at once.
    assert found["longest"] < 0.3, found
