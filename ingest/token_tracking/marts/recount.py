"""The events that a build counts, read again from the raw tables: what validation and report share.

The dbt project's own tests count with a query of theirs.
"""

from __future__ import annotations

from importlib import resources


def recounted_events(*, snapshot: str, zone: str) -> str:
    """Return a subquery: one row per counted event, with its payer and its date.

    Args:
        snapshot: SQL for the snapshot of the build.
        zone: SQL for the name of the billing time zone.

    """
    file = resources.files("token_tracking.marts").joinpath("recounted_events.sql")
    query = file.read_text("utf-8").rstrip()
    return f"({query.replace('{snapshot}', snapshot).replace('{zone}', zone)})"
