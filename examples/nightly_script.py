"""A script without an event loop; its exit status says whether every event is durable.

python examples/nightly_script.py
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from token_tracking import UsageTracker, make_idempotency_key

RUN = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def main() -> int:
    """Summarize the documents of a night, and record the token usage."""
    documents = {f"document-{number}": number * 10 for number in range(1, 51)}
    with UsageTracker() as tracker:
        answers = tracker.track_many_sync(
            {
                "tenant_id": "acme",
                "tokens": tokens,
                "model": "gpt-4o-mini",
                "operation": "summarize",
                "occurred_at": RUN,
                # A second run adds nothing.
                "idempotency_key": make_idempotency_key("nightly", RUN.date(), name),
            }
            for name, tokens in documents.items()
        )
        print(tracker.stats())  # noqa: T201
    return 0 if all(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
