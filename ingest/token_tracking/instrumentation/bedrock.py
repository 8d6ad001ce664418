"""Clients of boto3 for `bedrock-runtime`: botocore tells its own events of each call.

`after-call` comes once for each call, after the retries.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol, cast

from .call import log_fault
from .streamed import Json, StreamedMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .call import Call, Instrumentation

_PROVIDER: Final = "aws.bedrock"
_SERVICE: Final = "bedrock-runtime"
_OPERATIONS: Final = ("Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream")
_CALL: Final = "token_tracking"
_INPUT: Final = "x-amzn-bedrock-input-token-count"
_OUTPUT: Final = "x-amzn-bedrock-output-token-count"
_METRICS: Final = "amazon-bedrock-invocationMetrics"


class _Emitter(Protocol):
    def register(self, event_name: str, handler: object, unique_id: object) -> None: ...
    def unregister(self, event_name: str, handler: object, unique_id: object) -> None: ...


class _Meta(Protocol):
    events: _Emitter


class _Client(Protocol):
    meta: _Meta


class _Operation(Protocol):
    name: str


class _Stream(Protocol):
    _event_generator: Iterator[object]

    def _parse_event(self, event: object) -> object: ...
    def close(self) -> None: ...


class _Raw(Protocol):
    def read(self, amt: int | None, *args: object, **kwargs: object) -> bytes: ...
    def close(self) -> None: ...


class _Body(Protocol):
    _raw_stream: _Raw


def instrument_bedrock(
    client: object, instrumentation: Instrumentation
) -> list[Callable[[], None]]:
    """Register handlers of the client's own events; return what undoes it."""
    events = cast("_Client", client).meta.events

    def begin(params: Mapping[str, object], context: dict[str, object], **_: object) -> None:
        model = params.get("modelId")
        call = instrumentation.begin(_PROVIDER, model, embeds=_embeds(model))
        if call is not None:
            context[_CALL] = call

    def end(
        parsed: dict[str, object], model: _Operation, context: dict[str, object], **_: object
    ) -> None:
        call = cast("Call | None", context.pop(_CALL, None))
        if call is None or "Error" in parsed:
            return
        try:
            _settle(call, parsed, model.name)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)

    registered = [
        (f"{event}.{_SERVICE}.{operation}", handler)
        for operation in _OPERATIONS
        for event, handler in (("provide-client-params", begin), ("after-call", end))
    ]
    for name, handler in registered:
        events.register(name, handler, unique_id=f"{_CALL}-{name}")

    def undo() -> None:
        for name, handler in registered:
            events.unregister(name, handler, unique_id=f"{_CALL}-{name}")

    return [undo]


def _settle(call: Call, parsed: dict[str, object], operation: str) -> None:
    told = cast("Json", parsed.get("ResponseMetadata") or {})
    request_id = told.get("RequestId")
    call.source = call.source._replace(
        response_id=request_id if isinstance(request_id, str) else None
    )
    names: dict[str, object] = {"ResponseMetadata": told}
    if operation == "Converse":
        if parsed.get("usage") is None:
            call.answered_without_usage(names)
        else:
            call.answered(parsed)
    elif operation == "InvokeModel":
        headers = cast("Json", told.get("HTTPHeaders") or {})
        raw = cast("_Body", parsed["body"])._raw_stream  # pyright: ignore[reportPrivateUsage]
        counts = {**names, "usage": _in_headers(headers, call.source.model)}
        _read_body_while_passing(raw, _Invoked(call, counts, headers.get("content-length")))
    else:
        stream = cast("_Stream", parsed["stream" if operation == "ConverseStream" else "body"])
        _read_while_passing(stream, _Events(call, names))


def _embeds(model: object) -> bool:
    return isinstance(model, str) and "embed" in model


def _in_headers(headers: Json, model: object) -> dict[str, object] | None:
    """Return the counts that the service adds to any model's answer, in the form of Converse."""
    output = headers.get(_OUTPUT, "0" if _embeds(model) else None)
    counts = {"inputTokens": headers.get(_INPUT), "outputTokens": output}
    if not all(isinstance(count, str) and count.isdecimal() for count in counts.values()):
        return None
    return {name: int(cast("str", count)) for name, count in counts.items()}


def _settle_known(call: Call, response: Json | None) -> None:
    if response is not None and response.get("usage") is not None:
        call.answered(response)
    else:
        call.answered_without_usage(response)


class _Invoked:
    """Settles an `invoke_model`: the body may tell more than the headers, if it is read."""

    def __init__(self, call: Call, in_headers: dict[str, object], length: object) -> None:
        self._call = call
        self._in_headers = in_headers
        self._left = int(length) if isinstance(length, str) and length.isdecimal() else None
        self._parts: list[bytes] = []
        self._has_ended = False

    def feed(self, data: bytes) -> None:
        if self._has_ended:
            return
        self._parts.append(data)
        if self._left is not None:
            self._left -= len(data)
        # Whoever iterates over the lines stops here, without a last, empty read.
        if self._left == 0:
            self.end()

    def end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        try:
            _settle_known(self._call, self._told() or self._in_headers)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
        self._parts = []

    def _told(self) -> Json | None:
        try:
            body: object = json.loads(b"".join(self._parts))
        except ValueError:
            return None
        # Of other forms than Anthropic's, the headers say the same.
        told: Json = cast("Json", body) if isinstance(body, Mapping) else {}
        return told if told.get("type") == "message" and told.get("usage") is not None else None

    def __del__(self) -> None:
        self.end()


def _read_body_while_passing(raw: _Raw, invoked: _Invoked) -> None:
    """Have the body read while the caller reads it, from the raw stream under `StreamingBody`.

    The stream stays the object, whose other methods call its `read`. Nothing here refers to it:
    it is freed, and its connection with it, as without us.
    """
    weakly = weakref.ref(raw)
    its_class = type(raw)

    def read(amt: int | None = None, *args: object, **kwargs: object) -> bytes:
        data = its_class.read(cast("_Raw", weakly()), amt, *args, **kwargs)
        invoked.feed(data)
        return data

    def close() -> None:
        try:
            its_class.close(cast("_Raw", weakly()))
        finally:
            invoked.end()

    own = vars(raw)
    own["read"], own["close"] = read, close


class _Events:
    """Reads the events of a stream of either kind."""

    def __init__(self, call: Call, names: dict[str, object]) -> None:
        self._call = call
        self._names = names
        self._message = StreamedMessage()
        self._told: dict[str, object] | None = None
        self._has_ended = False

    def read(self, event: object) -> None:
        if self._has_ended or not isinstance(event, Mapping):
            return
        told = cast("Json", event)
        metadata, chunk = told.get("metadata"), told.get("chunk")
        if isinstance(metadata, Mapping):
            self._told = {**cast("Json", metadata), **self._names}
            self.end()
        elif isinstance(chunk, Mapping):
            self._read_chunk(cast("Json", chunk).get("bytes"))

    def _read_chunk(self, data: object) -> None:
        told: object = json.loads(data) if isinstance(data, bytes) else None
        if not isinstance(told, Mapping):
            return
        said = cast("Json", told)
        self._message.take(said)
        metrics = said.get(_METRICS)
        if isinstance(metrics, Mapping):
            counts = cast("Json", metrics)
            usage = {
                "inputTokens": counts.get("inputTokenCount"),
                "outputTokens": counts.get("outputTokenCount"),
            }
            self._told = self._message.response or {**self._names, "usage": usage}
            self.end()

    def end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        try:
            if self._told is not None:
                _settle_known(self._call, self._told)
            elif self._message.is_complete:
                _settle_known(self._call, self._message.response)
            else:
                self._call.cut(self._message.response)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)

    def __del__(self) -> None:
        self.end()


def _read_while_passing(stream: _Stream, events: _Events) -> None:
    """Have the stream's events read while the caller reads them; the stream stays the object."""
    its_parse_event = stream._parse_event  # pyright: ignore[reportPrivateUsage]
    its_close = stream.close

    def parse_event(event: object) -> object:
        try:
            parsed = its_parse_event(event)
        except Exception:  # the provider's, which ends the stream
            events.end()
            raise
        try:
            events.read(parsed)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
        return parsed

    def close() -> None:
        try:
            its_close()
        finally:
            events.end()

    own = vars(stream)
    own["_parse_event"], own["close"] = parse_event, close
    own["_event_generator"] = _passing(cast("Iterator[object]", own["_event_generator"]), events)


def _passing(raw: Iterator[object], events: _Events) -> Generator[object]:
    try:
        yield from raw
    finally:
        events.end()
