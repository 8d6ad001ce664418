"""The errors that this package raises, each with its data and whether a retry can help."""

from __future__ import annotations

from typing import ClassVar


class TokenTrackingError(Exception):
    """Base class of all errors of this package.

    `retryable` says whether the same call can succeed later without any change. If `track_many`
    raised the error, `told` holds the result of each of its events.
    """

    retryable: ClassVar[bool] = False
    told: list[bool] | None = None


class InvalidUsageError(TokenTrackingError):
    """A call's input is invalid; the payload is kept as a rejection."""

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        super().__init__(reason)


class UsageNotFoundError(InvalidUsageError):
    """A response has no usage that can be read; `kind` is the name of its class."""

    def __init__(self, kind: str, problem: str, known_forms: str) -> None:
        self.kind: str = kind
        super().__init__(f"response ({kind}): {problem}; known forms are {known_forms}")


class UsageConflictError(TokenTrackingError):
    """The key was used with another payload; the first counts, this one is kept as a conflict."""

    def __init__(self, reason: str) -> None:
        self.reason: str = reason
        super().__init__(reason)


class NotDurableError(TokenTrackingError):
    """The event is not known to be durable: neither database nor disk took it in time."""

    retryable: ClassVar[bool] = True

    def __init__(self, cause: str) -> None:
        self.cause: str = cause
        super().__init__(f"not known to be durable: {cause}")


class SettingsError(TokenTrackingError):
    """A setting, given as an argument or as `TOKEN_TRACKING_*`, is invalid."""


class SchemaError(TokenTrackingError):
    """The raw schema cannot be created or upgraded."""


class SpoolError(TokenTrackingError):
    """The local spool cannot be written or read.

    `full` if only space is missing. `uncertain` if the requests may have been written even so.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, full: bool = False, uncertain: bool = False) -> None:
        self.full: bool = full
        self.uncertain: bool = uncertain
        super().__init__(message)


class ServerError(TokenTrackingError):
    """The embedded PostgreSQL server cannot be started or stopped."""


class LoadError(TokenTrackingError):
    """A file cannot be loaded; `line` is the 1-based line at fault, if there is one."""

    def __init__(self, message: str, *, line: int | None = None) -> None:
        self.line: int | None = line
        super().__init__(message)


class PricesError(TokenTrackingError):
    """Prices cannot be read or recorded."""


class InvalidPriceError(PricesError):
    """A row of a table of prices breaks a rule; `line` is its line in a file, from 1."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        self.reason: str = reason
        self.line: int | None = line
        super().__init__(reason)


class DemoError(TokenTrackingError):
    """The demo cannot continue."""


class WarehouseError(TokenTrackingError):
    """The dbt project cannot be found or built."""


class BuildError(WarehouseError):
    """dbt failed; `nodes` are the failed nodes, empty if it failed before the first one."""

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, nodes: tuple[str, ...] = ()) -> None:
        self.nodes: tuple[str, ...] = nodes
        super().__init__(f"{nodes[0]}: {message}" if nodes else message)


class ReportError(TokenTrackingError):
    """The requested usage report cannot be made."""


class CompareError(TokenTrackingError):
    """An older table and the marts cannot be compared."""


class QualityError(TokenTrackingError):
    """The database cannot be validated."""


class NothingToCheckError(QualityError):
    """There are no events, or no totals of them, so there is nothing to validate."""
