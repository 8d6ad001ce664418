"""The settings and the fallback of the default tracker, for services with `common.tracking`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database
from token_tracking import TrackerSettings, UsageTracker, track_token_usage_sync
from token_tracking.client.settings import NamedFunction
from token_tracking.errors import SettingsError

OLD = """
import asyncio, json, threading
def track(**call):
    print(json.dumps(call), threading.current_thread().name, flush=True)
    return True
class Billing:
    @staticmethod
    async def track(**call):
        await asyncio.sleep(0)
        return track(**call)
count = 7
"""
# Neither database nor disk is available.
NOTHING = {"TOKEN_TRACKING_DSN": "host=/nonexistent", "TOKEN_TRACKING_SPOOL_DIR": "/proc/nowhere"}


def service(
    folder: Path, script: str, settings: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    (folder / "billing_of_before.py").write_text(OLD)
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join([str(folder), *sys.path]), **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


CALL = """
import asyncio
from common.tracking import track_token_usage
print(asyncio.run(track_token_usage("acme", 42, "gpt-4o", idempotency_key="k")))
"""


@pytest.mark.parametrize("name", ["track", "Billing.track"])
def test_the_environment_names_a_fallback(tmp_path: Path, name: str):
    """A separate thread imports and calls the function, which may be sync or async."""
    done = service(
        tmp_path, CALL, {**NOTHING, "TOKEN_TRACKING_FALLBACK": f"billing_of_before:{name}"}
    )
    called, answer = done.stdout.splitlines()
    assert answer == "True"
    assert called.endswith("token-tracking-fallback")
    assert '"tenant_id": "acme", "tokens": 42, "model": "gpt-4o"' in called
    assert '"idempotency_key": "k"' in called


def test_configure_gives_the_default_tracker_a_fallback(tmp_path: Path):
    script = """
import billing_of_before
from common.tracking import configure, track_token_usage_sync
configure(fallback=billing_of_before.track, max_wait=1)
print(track_token_usage_sync("acme", 42))
"""
    done = service(tmp_path, script, NOTHING)
    assert '"tokens": 42' in done.stdout
    assert done.stdout.endswith("True\n")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("no_such_module:track", "no_such_module:track cannot be imported, ModuleNotFoundError"),
        ("billing_of_before:gone", "billing_of_before:gone cannot be imported, AttributeError"),
        ("billing_of_before:count", "billing_of_before:count is not a function"),
        (
            "common.tracking:track_token_usage",
            "is token_tracking's own: name the earlier implementation",
        ),
    ],
)
def test_a_missing_fallback_is_told_at_the_first_call(
    database: Database, tmp_path: Path, place: str, said: str
):
    """Even if the database takes every event; if it does not, the call returns False."""
    named = {"TOKEN_TRACKING_FALLBACK": place}
    script = f"{CALL}\nimport time; time.sleep(0.5)"
    done = service(tmp_path, script, {**named, "TOKEN_TRACKING_DSN": database.url})
    assert done.stdout == "True\n"
    assert f"setting fallback (TOKEN_TRACKING_FALLBACK): {place}" in done.stderr
    assert said in done.stderr
    done = service(tmp_path, CALL, {**named, **NOTHING})
    assert done.stdout == "False\n"
    assert said in done.stderr


def test_configure_again_or_after_a_call_is_refused(tmp_path: Path):
    script = """
from common.tracking import SettingsError, configure, track_token_usage_sync
for first in (lambda: configure(enabled=False), lambda: track_token_usage_sync("a", 1)):
    first()
    try:
        configure(enabled=True)
    except SettingsError as error:
        print(error)
print(track_token_usage_sync("a", 1))
"""
    done = service(tmp_path, script, NOTHING)
    refused = "configure: the default tracker was made already, by a call or by configure"
    *errors, answer = done.stdout.splitlines()
    assert [error.split(";")[0] for error in errors] == [refused] * 2
    assert answer == "True"  # as of the first one


@pytest.mark.parametrize("place", ["", "billing", "billing:", ":track", "a b:c", "a..b:c", 7])
def test_a_place_that_is_none_is_told_by_name(place: object):
    with pytest.raises(SettingsError) as told:
        TrackerSettings(fallback=place)  # type: ignore[arg-type]
    assert str(told.value) == (
        "setting fallback (TOKEN_TRACKING_FALLBACK): must be a function, or where one is, "
        "as package.module:function"
    )


def test_a_fallback_beside_settings_counts():
    settings = TrackerSettings(enabled=False, fallback="a.b:c")  # type: ignore[arg-type]
    assert settings.fallback == NamedFunction("a.b", "c")
    assert UsageTracker(settings=settings).settings.fallback == NamedFunction("a.b", "c")
    tracker = UsageTracker(settings=settings, fallback=track_token_usage_sync)
    assert tracker.settings.fallback is track_token_usage_sync
