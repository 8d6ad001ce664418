"""Where a tracker's events go: its database, and the spool folder for that database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import forks
from .spool.folder import SpoolFolder, default_base

if TYPE_CHECKING:
    from .connection import Connection
    from .settings import TrackerSettings


def spool_folder_of(settings: TrackerSettings) -> SpoolFolder:
    """Return the spool folder for the database of these settings."""
    if settings.spool_dir is not None:
        return SpoolFolder(settings.spool_dir)
    with forks.postponed:
        from ..target import Target
    dsn = settings.dsn
    target = Target.of(None if dsn is None else dsn.get_secret_value())
    return SpoolFolder(default_base() / target.folder_name, str(target), default_base())


def connect(settings: TrackerSettings) -> Connection:
    """Open a connection to the database of these settings; every wait on it has a bound."""
    with forks.postponed:
        from .connection import Connection
    dsn = settings.dsn
    return Connection.open(
        None if dsn is None else dsn.get_secret_value(), patience=settings.max_wait
    )
