"""Requests as a spool holds them, and the command that shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.commands import forked_command
from token_tracking.client.requests import EventRequest
from token_tracking.client.spool.spool import Spool


def request(key: str, payload: str | None = None) -> EventRequest:
    text = f'{{"tenant_id": "a", "idempotency_key": "{key}", "tokens": 7}}'
    return EventRequest(("a", key), (text if payload is None else payload).encode())


def spool_command(
    dsn: str, folder: Path, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*forked_command(), "spool", *words],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONWARNINGS": "error",
            "TOKEN_TRACKING_DSN": dsn,
            "TOKEN_TRACKING_SPOOL_DIR": str(folder),
            **more,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def left_behind(folder: Path, count: int) -> None:
    spool = Spool.create(folder, 2**30)
    spool.append([request(f"{count}-{number}") for number in range(count)])
    spool.close()
