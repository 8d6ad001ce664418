"""A script without event loop: one `with`, and the exit status says whether all is durable.

python examples/nightly_script.py
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from token_tracking import UsageTracker, make_idempotency_key

RUN = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def main() -> int:
    """Summarize the documents of a night, and record what that cost."""
    documents = {f"document-{number}": number * 10 for number in range(1, 51)}
    with UsageTracker() as tracker:
        told = tracker.track_many_sync(
            {
                "tenant_id": "acme",
                "tokens": tokens,
                "model": "gpt-4o-mini",
                "operation": "summarize",
                "occurred_at": RUN,
                # Run again, it adds nothing.
                "idempotency_key": make_idempotency_key("nightly", RUN.date(), name),
            }
            for name, tokens in documents.items()
        )
        print(tracker.stats())  # noqa: T201
    return 0 if all(told) else 1


if __name__ == "__main__":
    sys.exit(main())
