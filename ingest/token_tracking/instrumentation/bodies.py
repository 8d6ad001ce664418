"""Reads the body of an HTTP response of httpx while it passes to the caller.

Whatever reads a response with httpx, its text, lines or bytes, goes through `iter_raw`. So the tap
is there, on the one response and not on the client, which may be shared; of a compressed body it is
one step later, on `iter_bytes`, which decompresses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

from .call import log_fault
from .streamed import Json, Streamed, usage_is_alone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator

    from .call import Call

_BOUNDARY: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_NULL_USAGE: Final = re.compile(rb',\s*"usage":\s*null')
_MOST_BYTES: Final = 64 * 2**20  # of one body, or of one event


class Reader(Protocol):
    """What reads a body: never raises, and settles the call exactly once."""

    def feed(self, data: bytes) -> bytes:
        """Read the next bytes, and return those to pass on."""
        ...

    def rest(self) -> bytes:
        """Return the bytes that are still held back when no more come."""
        ...

    def end(self) -> None:
        """Settle the call: the body was read, broken off, closed or dropped."""
        ...


def settle_stream(call: Call, streamed: Streamed) -> None:
    """Record what a stream told by its end."""
    response = streamed.response
    if not streamed.is_complete:
        call.cut(response)
    elif response is None or response.get("usage") is None:
        if not streamed.has_failed:
            call.answered_without_usage(response)
    else:
        call.answered(response)


class EventReader:
    """Reads server-sent events.

    With `hides`, the chunk that only tells the usage is taken out, as is the field of that name
    that is null in the other chunks: then the caller sees what the provider sends to those who do
    not ask for it.
    """

    def __init__(
        self,
        call: Call,
        streamed: Streamed,
        settle: Callable[[Call, Streamed], None] = settle_stream,
        *,
        hides: bool = False,
    ) -> None:
        self._call = call
        self._streamed = streamed
        self._settle_call = settle
        self._hides = hides
        self._held = b""
        self._has_begun = False
        self._has_ended = False

    def feed(self, data: bytes) -> bytes:
        if self._has_ended and not self._hides:
            return data
        try:
            passed = self._fed(data)
            if self._streamed.is_complete:
                self._settle()
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
            held, self._held, self._hides = self._held, b"", False
            self._has_ended = True
            return held + data
        return passed if self._hides else data

    def _fed(self, data: bytes) -> bytes:
        held = self._held
        text = held + data
        passed: list[bytes] = []
        begin = 0
        for boundary in _BOUNDARY.finditer(text, max(0, len(held) - 3)):
            passed.append(self._seen(text[begin : boundary.end()]))
            begin = boundary.end()
        self._held = text[begin:]
        if len(self._held) > _MOST_BYTES:
            passed.append(self._held)
            self._held = b""
        return b"".join(passed)

    def _seen(self, event: bytes) -> bytes:
        """Take the event, and return what the caller sees of it."""
        data = _data_of(event)
        streamed = self._streamed
        if data == b"[DONE]":
            streamed.is_complete = True
            return event
        if self._has_begun and not any(mark in data for mark in streamed.marks):
            return event
        try:
            told: object = json.loads(data)
        except ValueError:
            return event
        if not isinstance(told, Mapping):
            return event
        taken = cast("Json", told)
        self._has_begun = True
        streamed.take(taken)
        if not self._hides:
            return event
        if usage_is_alone(taken):
            return b""
        return _NULL_USAGE.sub(b"", event)

    def rest(self) -> bytes:
        self.end()
        held, self._held = self._held, b""
        return held if self._hides else b""

    def end(self) -> None:
        if self._has_ended:
            return
        try:
            if self._held:
                self._held = self._seen(self._held)
            self._settle()
        except Exception as error:  # noqa: BLE001  # as above
            log_fault(error)

    def _settle(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._settle_call(self._call, self._streamed)

    def __del__(self) -> None:
        self.end()


def _data_of(event: bytes) -> bytes:
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


class BodyReader:
    """Reads a body that is one JSON document."""

    def __init__(self, call: Call, settle: Callable[[Call, object], None]) -> None:
        self._call = call
        self._settle = settle
        self._parts: list[bytes] = []
        self._size = 0
        self._has_ended = False

    def feed(self, data: bytes) -> bytes:
        if not self._has_ended and self._size <= _MOST_BYTES:
            self._parts.append(data)
            self._size += len(data)
        return data

    def rest(self) -> bytes:
        self.end()
        return b""

    def end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        try:
            try:
                response: object = json.loads(b"".join(self._parts))
            except ValueError:
                self._call.cut(None)
            else:
                self._settle(self._call, response)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
        self._parts = []

    def __del__(self) -> None:
        self.end()


class HttpResponse(Protocol):
    """A response of httpx, or of a library that follows it."""

    @property
    def is_closed(self) -> bool:
        """Whether the body was read or the connection given up."""
        ...

    @property
    def content(self) -> bytes:
        """The body, if it was read."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, whose names are compared without their case."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...

    async def aclose(self) -> None:
        """Give up the connection in a task."""
        ...


def read_while_passing(response: HttpResponse, reader: Reader) -> None:
    """Have the reader read the body while the caller does; it is told of the end, however it ends.

    The response's methods are replaced on this one object.
    """
    name = "iter_bytes" if "content-encoding" in response.headers else "iter_raw"
    its_parts: Callable[..., Iterator[bytes]] = getattr(response, name)
    its_parts_async: Callable[..., AsyncIterator[bytes]] = getattr(response, f"a{name}")
    its_close, its_close_async = response.close, response.aclose

    tap = _Tap(reader)

    def parts(chunk_size: int | None = None) -> Iterator[bytes]:
        return _passing(its_parts(chunk_size), tap)

    def parts_async(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        return _PassingAsync(its_parts_async(chunk_size), tap)

    def close() -> None:
        try:
            its_close()
        finally:
            tap.closed()

    async def aclose() -> None:
        try:
            await its_close_async()
        finally:
            tap.closed()

    own = vars(response)
    own[name], own[f"a{name}"] = parts, parts_async
    own["close"], own["aclose"] = close, aclose


class _Tap:
    """A reader, and whether the next bytes for it are being read.

    Then the library may close the response before it passes on the last ones.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.is_reading = False

    def closed(self) -> None:
        if not self.is_reading:
            self.reader.end()


def _passing(parts: Iterator[bytes], tap: _Tap) -> Generator[bytes]:
    reader = tap.reader
    try:
        while True:
            tap.is_reading = True
            try:
                data = next(parts)
            except Exception as error:
                if rest := reader.rest():
                    yield rest
                if isinstance(error, StopIteration):
                    return
                raise
            finally:
                tap.is_reading = False
            if passed := reader.feed(data):
                yield passed
    finally:
        reader.end()


class _PassingAsync:
    """The same for a task; no generator, which would have to be finished by its event loop."""

    def __init__(self, parts: AsyncIterator[bytes], tap: _Tap) -> None:
        self._parts = parts
        self._tap = tap
        self._error: BaseException | None = None

    def __aiter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        try:
            if hasattr(self._parts, "aclose"):
                await cast("AsyncGenerator[bytes]", self._parts).aclose()
        finally:
            self._tap.reader.end()

    async def __anext__(self) -> bytes:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        reader = self._tap.reader
        passed = b""
        self._tap.is_reading = True
        try:
            while not passed:
                passed = reader.feed(await self._parts.__anext__())
        except Exception as error:  # StopAsyncIteration, too
            passed = reader.rest()
            if not passed:
                raise
            self._error = error
        finally:
            self._tap.is_reading = False
        return passed
