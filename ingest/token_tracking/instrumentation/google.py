"""Clients of google-genai, plain and `aio`.

Every call of theirs goes through the four request methods of the one API client that all parts
share: also those that automatic function calling makes in between, which the caller never sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from ..client.context import current_context
from .call import log_fault
from .replaced import replaced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from .call import Call, Instrumentation
    from .streamed import Json

    Begin = Callable[[tuple[object, ...], Mapping[str, object]], Call | None]

_GENERATES: Final = ("generateContent", "streamGenerateContent")
_NAMES: Final = ("usageMetadata", "modelVersion", "responseId")
_EMBEDS: Final = ("embedContent", "batchEmbedContents")


class _Begun(NamedTuple):
    """The stream whose next chunk is being asked for, and the usage context in which it is."""

    instrumentation: Instrumentation
    fields: Mapping[str, object]
    current: Mapping[str, object]


_begun: Final[ContextVar[_Begun | None]] = ContextVar("token_tracking_google_call", default=None)


class _Models(Protocol):
    @property
    def generate_content_stream(self) -> Callable[..., object]: ...


class _AioModels(Protocol):
    @property
    def generate_content_stream(self) -> Callable[..., Awaitable[object]]: ...


class _Aio(Protocol):
    @property
    def models(self) -> _AioModels: ...


class _ApiClient(Protocol):
    vertexai: object

    @property
    def request(self) -> Callable[..., object]: ...
    @property
    def async_request(self) -> Callable[..., Awaitable[object]]: ...
    @property
    def request_streamed(self) -> Callable[..., object]: ...
    @property
    def async_request_streamed(self) -> Callable[..., Awaitable[object]]: ...


class _Client(Protocol):
    _api_client: _ApiClient

    @property
    def models(self) -> _Models: ...
    @property
    def aio(self) -> _Aio: ...


class _Answer(Protocol):
    body: str | None


def instrument_google(client: object, instrumentation: Instrumentation) -> list[Callable[[], None]]:
    """Replace the request methods of the client's API client; return what undoes it."""
    instance = cast("_Client", client)
    api = instance._api_client  # pyright: ignore[reportPrivateUsage]
    models, aio_models = instance.models, instance.aio.models
    provider = "gcp.vertex_ai" if api.vertexai else "gcp.gemini"

    def begin(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call | None:
        path = kwargs.get("path", args[1] if len(args) > 1 else None)
        if not isinstance(path, str):
            return None
        model, _, method = path.partition("?")[0].rpartition(":")
        if method not in _GENERATES and method not in _EMBEDS:
            return None
        return instrumentation.begin(
            provider,
            model.rpartition("/")[2],
            embeds=method in _EMBEDS,
            fields=_fields_of_stream(instrumentation),
        )

    return [
        replaced(api, "request", _request(api.request, begin)),
        replaced(api, "async_request", _async_request(api.async_request, begin)),
        replaced(api, "request_streamed", _streamed(api.request_streamed, begin)),
        replaced(api, "async_request_streamed", _async_streamed(api.async_request_streamed, begin)),
        replaced(
            models,
            "generate_content_stream",
            _begun_at_once(models.generate_content_stream, instrumentation),
        ),
        replaced(
            aio_models,
            "generate_content_stream",
            _begun_at_once_async(aio_models.generate_content_stream, instrumentation),
        ),
    ]


def _request(original: Callable[..., object], begin: Begin) -> Callable[..., object]:
    @wraps(original)
    def request(*args: object, **kwargs: object) -> object:
        call = begin(args, kwargs)
        answer = original(*args, **kwargs)
        if call is not None:
            _settle(call, answer)
        return answer

    return request


def _async_request(
    original: Callable[..., Awaitable[object]], begin: Begin
) -> Callable[..., object]:
    @wraps(original)
    async def request(*args: object, **kwargs: object) -> object:
        call = begin(args, kwargs)
        answer: object = await original(*args, **kwargs)
        if call is not None:
            _settle(call, answer)
        return answer

    return request


def _streamed(original: Callable[..., object], begin: Begin) -> Callable[..., object]:
    @wraps(original)
    def request_streamed(*args: object, **kwargs: object) -> object:
        call = begin(args, kwargs)
        chunks = cast("Generator[_Answer]", original(*args, **kwargs))
        return chunks if call is None else _read(chunks, _Reader(call, is_answered=False))

    return request_streamed


def _async_streamed(
    original: Callable[..., Awaitable[object]], begin: Begin
) -> Callable[..., object]:
    @wraps(original)
    async def request_streamed(*args: object, **kwargs: object) -> object:
        call = begin(args, kwargs)
        chunks: object = await original(*args, **kwargs)
        if call is None:
            return chunks
        reader = _Reader(call, is_answered=True)
        return _read_async(cast("AsyncGenerator[_Answer]", chunks), reader)

    return request_streamed


def _settle(call: Call, answer: object) -> None:
    try:
        _settle_known(call, _parsed(cast("_Answer", answer).body))
    except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
        log_fault(error)


def _settle_known(call: Call, response: Json) -> None:
    if response.get("usageMetadata") is None:
        call.answered_without_usage(response)
    else:
        call.answered(response)


def _parsed(body: str | None) -> Json:
    response: object = json.loads(body) if body else None
    return cast("Json", response) if isinstance(response, Mapping) else {}


def _ends(chunk: Json) -> bool:
    """Return whether this chunk is a stream's last one: it says why nothing more comes."""
    candidates, feedback = chunk.get("candidates"), chunk.get("promptFeedback")
    told = [*cast("list[object]", candidates or []), feedback]
    return any(
        isinstance(one, Mapping) and ("finishReason" in one or "blockReason" in one) for one in told
    )


class _Reader:
    """Reads the chunks of a stream: each tells the usage so far, so the last one counts.

    `is_answered` says that the provider has accepted the request. Where the request is sent when
    the first chunk is asked for, only this chunk shows it.
    """

    def __init__(self, call: Call, *, is_answered: bool) -> None:
        self._call = call
        self._is_answered = is_answered
        self._told: dict[str, object] = {}
        self._is_finished = False
        self._has_ended = False

    def read(self, answer: _Answer) -> None:
        self._is_answered = True
        try:
            chunk = _parsed(answer.body)
            self._told |= {name: chunk[name] for name in _NAMES if name in chunk}
            self._is_finished |= _ends(chunk)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)

    def end(self) -> None:
        if self._has_ended or not self._is_answered:
            return
        self._has_ended = True
        try:
            if self._is_finished:
                _settle_known(self._call, self._told)
            else:
                self._call.cut(self._told)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)

    def __del__(self) -> None:
        self.end()


def _read(chunks: Generator[_Answer], reader: _Reader) -> Generator[_Answer]:
    try:
        for chunk in chunks:
            reader.read(chunk)
            yield chunk
    finally:
        reader.end()


async def _read_async(chunks: AsyncGenerator[_Answer], reader: _Reader) -> AsyncGenerator[_Answer]:
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                reader.read(chunk)
                yield chunk
        finally:
            reader.end()


# The library's streams are generators: they send the request when the first chunk is asked for,
# which may be in another context than the call.


def _begun_at_once(
    original: Callable[..., object], instrumentation: Instrumentation
) -> Callable[..., object]:
    @wraps(original)
    def generate_content_stream(*args: object, **kwargs: object) -> object:
        chunks = cast("Generator[object]", original(*args, **kwargs))
        return _under(instrumentation, instrumentation.fields(), chunks)

    return generate_content_stream


def _begun_at_once_async(
    original: Callable[..., Awaitable[object]], instrumentation: Instrumentation
) -> Callable[..., object]:
    @wraps(original)
    async def generate_content_stream(*args: object, **kwargs: object) -> object:
        fields = instrumentation.fields()
        with _asking(instrumentation, fields):
            chunks: object = await original(*args, **kwargs)
        return _under_async(instrumentation, fields, cast("AsyncGenerator[object]", chunks))

    return generate_content_stream


@contextmanager
def _asking(instrumentation: Instrumentation, fields: Mapping[str, object]) -> Generator[None]:
    token = _begun.set(_Begun(instrumentation, fields, current_context()))
    try:
        yield
    finally:
        _begun.reset(token)


def _fields_of_stream(instrumentation: Instrumentation) -> Mapping[str, object] | None:
    """Return the fields of the stream that makes this request, unless one of its tools does.

    A tool that calls a model under a usage context of its own, or with another client, means that.
    """
    begun = _begun.get()
    if begun is None or begun.instrumentation is not instrumentation:
        return None
    return begun.fields if begun.current == current_context() else None


def _under(
    instrumentation: Instrumentation, fields: Mapping[str, object], chunks: Generator[object]
) -> Generator[object]:
    while True:
        with _asking(instrumentation, fields):
            try:
                chunk = next(chunks)
            except StopIteration:
                return
        yield chunk


async def _under_async(
    instrumentation: Instrumentation, fields: Mapping[str, object], chunks: AsyncGenerator[object]
) -> AsyncGenerator[object]:
    async with aclosing(chunks):
        while True:
            with _asking(instrumentation, fields):
                try:
                    chunk = await chunks.__anext__()
                except StopAsyncIteration:
                    return
            yield chunk
