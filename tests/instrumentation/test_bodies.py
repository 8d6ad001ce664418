"""Bodies that are read while they pass: whichever way the network cuts them."""

from __future__ import annotations

import json

import pytest

from token_tracking.instrumentation.bodies import EventReader
from token_tracking.instrumentation.streamed import StreamedChat

USAGE = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}
# What a caller who does not ask for the usage gets, and what the provider sends to us. The text
# that a model writes may look like anything.
TEXTS = ("Hé", "usage", '", "usage": null, "', "data: [DONE]\n\n", "\r\n\r\n")


class Settled:
    """Takes a call's result."""

    def __init__(self) -> None:
        self.results: list[tuple[str, object]] = []

    def answered(self, response: object) -> None:
        self.results.append(("answered", response))

    def cut(self, response: object) -> None:
        self.results.append(("cut", response))


def events(end: str, *, asked: bool, last: dict[str, object] | None = None) -> bytes:
    chunks = [{"id": "c", "choices": [{"delta": {"content": text}}]} for text in TEXTS]
    if asked:
        chunks = [chunk | {"usage": None} for chunk in chunks]
        chunks.append({"id": "c", "usage": USAGE, **({"choices": []} if last is None else last)})
    lines = [": a comment", *[f"data: {json.dumps(chunk)}" for chunk in chunks], "data: [DONE]"]
    return "".join(line + end for line in lines).encode()


def passed(reader: EventReader, body: bytes, size: int) -> bytes:
    parts = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return b"".join([*map(reader.feed, parts), reader.rest()])


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_the_usage_is_hidden_however_the_body_is_cut(end: str, size: int):
    settled = Settled()
    reader = EventReader(settled, StreamedChat(), hides=True)  # type: ignore[arg-type]
    assert passed(reader, events(end, asked=True), size) == events(end, asked=False)
    assert settled.results == [("answered", {"id": "c", "usage": USAGE})]


@pytest.mark.parametrize("last", [{}, {"choices": None}])
def test_a_last_chunk_of_another_form_is_hidden(last: dict[str, object]):
    reader = EventReader(Settled(), StreamedChat(), hides=True)  # type: ignore[arg-type]
    body = events("\n\n", asked=True, last=last)
    assert passed(reader, body, 7) == events("\n\n", asked=False)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_nothing_is_hidden_from_a_caller_who_asked(size: int):
    settled = Settled()
    reader = EventReader(settled, StreamedChat())  # type: ignore[arg-type]
    body = events("\n\n", asked=True)
    assert passed(reader, body, size) == body
    assert settled.results == [("answered", {"id": "c", "usage": USAGE})]


def test_after_a_fault_everything_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(StreamedChat, "take", fail)
    reader = EventReader(Settled(), StreamedChat(), hides=True)  # type: ignore[arg-type]
    body = events("\n\n", asked=True)
    assert passed(reader, body, 7) == body


def test_an_unfinished_event_is_passed_on_at_the_end():
    settled = Settled()
    reader = EventReader(settled, StreamedChat(), hides=True)  # type: ignore[arg-type]
    body = events("\n\n", asked=False)[:100]
    assert passed(reader, body, 9) == body
    assert [kind for kind, _ in settled.results] == ["cut"]
