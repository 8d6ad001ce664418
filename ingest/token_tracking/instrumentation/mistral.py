"""Clients of mistralai: a hook of the library sees each response once, after its retries."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, Protocol, cast

from .bodies import BodyReader, EventReader, HttpResponse, read_while_passing
from .call import log_fault
from .streamed import StreamedChat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .call import Call, Instrumentation

_PATHS: Final = re.compile(
    r"/(chat/completions|fim/completions|agents/completions|embeddings"
    r"|conversations(/[^/]+(/restart)?)?)$"
)
_PROVIDER: Final = "mistral_ai"


class _Url(Protocol):
    path: str


class _Request(Protocol):
    method: str
    url: _Url

    @property
    def content(self) -> bytes: ...


class _Response(HttpResponse, Protocol):
    @property
    def request(self) -> _Request: ...


class _Hooks(Protocol):
    after_success_hooks: list[object]


class _Configured(Protocol):
    sdk_configuration: object


class _Hook:
    def __init__(self, instrumentation: Instrumentation) -> None:
        self._instrumentation = instrumentation

    def after_success(self, _: object, response: _Response) -> _Response:
        try:
            request = response.request
            path = request.url.path
            if request.method == "POST" and _PATHS.search(path):
                model = _model_of(request.content) if "/conversations" in path else None
                call = self._instrumentation.begin(_PROVIDER, model)
                if call is not None:
                    _read(call, response)
        except Exception as error:  # noqa: BLE001  # the caller must never pay for a fault in here
            log_fault(error)
        return response


def _read(call: Call, response: HttpResponse) -> None:
    if not response.is_closed:
        read_while_passing(response, EventReader(call, StreamedChat()))
        return
    reader = BodyReader(call, _settle)
    reader.feed(response.content)
    reader.end()


def _model_of(body: bytes) -> object:
    """Return the model that was asked for: answers of conversations do not name it."""
    asked: object = json.loads(body)
    return cast("Mapping[str, object]", asked).get("model")


def _settle(call: Call, response: object) -> None:
    if cast("Mapping[str, object]", response).get("usage") is not None:
        call.answered(response)
    else:
        call.answered_without_usage(response)


def instrument_mistral(
    client: object, instrumentation: Instrumentation
) -> list[Callable[[], None]]:
    """Add a hook to those of the client, which all of its parts share; return what undoes it."""
    configuration = cast("_Configured", client).sdk_configuration
    hooks = cast("_Hooks", vars(configuration)["_hooks"]).after_success_hooks
    hook = _Hook(instrumentation)
    hooks.append(hook)

    def undo() -> None:
        hooks[:] = [one for one in hooks if one is not hook]

    return [undo]
