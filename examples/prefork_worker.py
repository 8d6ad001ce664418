"""Fork workers from a parent that has loaded everything, as gunicorn and Celery do.

python examples/prefork_worker.py
"""

from __future__ import annotations

import os
import sys

from token_tracking import UsageTracker

WORKERS = 3
JOBS = 20

# Created before the fork, and also used by the parent: each process gets its own connection.
tracker = UsageTracker()


def work(worker: int) -> None:
    """Do a worker's jobs; `close` writes pending events before the process ends."""
    for job in range(JOBS):
        tracker.track_token_usage_sync(
            "acme",
            input_tokens=100 + job,
            model="text-embedding-3-small",
            token_type="embedding",
            operation="batch",
            idempotency_key=f"job-{worker}-{job}",
        )
    tracker.close()


def main() -> int:
    """Fork the workers and wait for them."""
    tracker.track_token_usage_sync("acme", 12, "gpt-4o", operation="internal")
    children: list[int] = []
    for worker in range(WORKERS):
        child = os.fork()
        if child == 0:
            work(worker)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    tracker.close()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
