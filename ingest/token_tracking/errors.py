"""Every error that this package raises, each with its datum and whether a retry can help."""

from __future__ import annotations

from typing import ClassVar


class TokenTrackingError(Exception):
    """Base of all errors of this package.

    `retryable` says whether the same call can succeed later without any change. `told` is what each
    event of a `track_many` came to, where that raised.
    """

    retryable: ClassVar[bool] = False
    told: list[bool] | None = None


class InvalidUsageError(TokenTrackingError):
    """A call's input breaks a rule; the payload is kept as a rejection."""

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        super().__init__(reason)


class UsageConflictError(TokenTrackingError):
    """The key is known with another payload; the first counts, this one is kept as a conflict."""

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        super().__init__(reason)


class NotDurableError(TokenTrackingError):
    """It is not known that the event is durable: nothing could take it within the bounded wait."""

    retryable: ClassVar[bool] = True

    def __init__(self, cause: str) -> None:
        self.cause: str = cause
        super().__init__(f"not known to be durable: {cause}")


class SettingsError(TokenTrackingError):
    """A setting, given as an argument or as `TOKEN_TRACKING_*`, breaks a rule."""


class SchemaError(TokenTrackingError):
    """The raw schema cannot be brought to this version."""


class SpoolError(TokenTrackingError):
    """The local spool cannot take or give what waits.

    `full`: only for want of room. `uncertain`: it may have been taken even so.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, full: bool = False, uncertain: bool = False) -> None:
        self.full: bool = full
        self.uncertain: bool = uncertain
        super().__init__(message)


class ServerError(TokenTrackingError):
    """The embedded PostgreSQL server cannot be started or stopped."""


class LoadError(TokenTrackingError):
    """A file cannot be loaded; `line` is its 1-based line, where one is to blame."""

    def __init__(self, message: str, *, line: int | None = None) -> None:
        self.line: int | None = line
        super().__init__(message)


class DemoError(TokenTrackingError):
    """The demo cannot go on."""


class WarehouseError(TokenTrackingError):
    """The dbt project cannot be found or built."""


class BuildError(WarehouseError):
    """dbt failed; `nodes` are those that did, none where it came to none."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, nodes: tuple[str, ...] = ()) -> None:
        self.nodes: tuple[str, ...] = nodes
        super().__init__(f"{nodes[0]}: {message}" if nodes else message)


class ReportError(TokenTrackingError):
    """There is no usage report of what was asked for."""


class CompareError(TokenTrackingError):
    """An older table and the marts cannot be compared."""


class QualityError(TokenTrackingError):
    """The database cannot be validated."""


class NothingToCheckError(QualityError):
    """There are no events, or no totals of them: neither right nor wrong."""
