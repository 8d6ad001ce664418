"""A statement prepared under a name that depends on its text alone, so that poolers may lose it."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from psycopg.pq import DiagnosticField, ExecStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult

# A connection that sends a statement less often than this does not prepare it.
_FIRST_WITHOUT_NAME: Final = 5
# Behind a pooler, each server connection lacks the statement once. If it is missing more often than
# this, and than in one of so many executions, preparing it costs more than it saves.
_MOST_MISSES: Final = 20
_EXECUTIONS_PER_MISS: Final = 100

_MISSING: Final = b"26000"
_EXISTS: Final = b"42P05"
# The prepared statement has a plan of another result type: the function was created again.
_RESULT_CHANGED: Final = b"0A000"


class NamedStatement:
    """One statement on one client connection: sent by its name once it is prepared, else as text.

    A pooler in transaction mode runs each transaction on any of its server connections, and each of
    these has its own prepared statements. The name is a hash of the text, so on each of them it is
    either missing or means this statement. A server that reports it as missing has executed
    nothing; `falls_back` then says to send the text instead, which works on any connection.

    A pooler that keeps track of prepared statements, such as PgBouncer from 1.21 on, disconnects a
    client that prepares a name twice. It also renames the statement: so it is prepared again only
    if the server's error has the name that was sent.
    """

    def __init__(self, label: str, text: str) -> None:
        self.text = text.encode()
        # At most 63 bytes: the server cuts off the rest.
        self.name = f"{label}_{sha256(self.text).hexdigest()[:32]}".encode()
        self._executions = 0
        self._misses = 0
        self._is_prepared = False
        self._is_given_up = False

    def is_due(self) -> bool:
        """Return whether to prepare the statement before it is sent again."""
        return (
            not self._is_prepared
            and not self._is_given_up
            and self._executions >= _FIRST_WITHOUT_NAME
        )

    def begin_to_prepare(self, pgconn: PGconn) -> None:
        """Send the statement to be prepared; pass the result to `end_of_prepare`."""
        # Whatever interrupts this leaves it open whether a pooler knows the name.
        self._is_given_up = True
        pgconn.send_prepare(self.name, self.text)

    def end_of_prepare(self, result: PGresult) -> None:
        """Use the name from now on, or never if the server cannot prepare the statement.

        An error is not raised: the statement itself meets it again, if it is one of the server's.
        """
        self._is_prepared = result.status == ExecStatus.COMMAND_OK or _state(result) == _EXISTS
        self._is_given_up = not self._is_prepared

    def send(self, pgconn: PGconn, values: Sequence[bytes], formats: Sequence[int]) -> None:
        """Send the statement with its values, by name if it is prepared."""
        self._executions += 1
        if self._is_prepared:
            pgconn.send_query_prepared(self.name, values, param_formats=formats)
        else:
            pgconn.send_query_params(self.text, values, param_formats=formats)

    def falls_back(self, result: PGresult) -> bool:
        """Return whether the statement failed only since it was sent by name: send it once more.

        The server has recorded nothing of it.
        """
        if not self._is_prepared or result.status == ExecStatus.TUPLES_OK:
            return False
        state = _state(result)
        if state not in {_MISSING, _RESULT_CHANGED}:
            return False
        self._is_prepared = False
        self._misses += 1
        # The error of a changed result type has no name: the statement keeps failing by its name.
        self._is_given_up = (
            self.name not in (result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"")
            or self._misses > _MOST_MISSES + self._executions // _EXECUTIONS_PER_MISS
        )
        return True


def _state(result: PGresult) -> bytes | None:
    return result.error_field(DiagnosticField.SQLSTATE)
