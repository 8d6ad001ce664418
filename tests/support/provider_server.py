"""A local server that answers in the form of each provider, plain and streamed.

What it does with a request is in the name of its model, so that requests may run at the same time:

    breaks    an error in the middle of the stream (Bedrock)
    cut       the stream ends in the middle, without its end
    fails     an error 400, at every attempt
    flaky     an error 500 at the first attempt of this prompt
    marks     the text is names of members (Gemini)
    silent    no usage
    strict    an error 400 if the request has `stream_options`
    running   each chunk tells the usage so far
    tools     the first answer calls the tool `look_up` (Gemini)
    waits     the second half of the stream waits until `go_on` is set
    zipped    the stream is compressed
    sparse    the second chunk tells no usage
    blocked   the prompt is not answered
    refused   the response fails after it has begun
    filtered  the first chunk has no choices, as Azure's

The ids are made of the prompt, which each test chooses.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

Json = dict[str, object]

WORDS = ("Hello", " world", "!")
OPENAI_USAGE: Json = {
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "total_tokens": 130,
    "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
RESPONSES_USAGE: Json = {
    "input_tokens": 100,
    "output_tokens": 30,
    "total_tokens": 130,
    "input_tokens_details": {"cached_tokens": 60},
    "output_tokens_details": {"reasoning_tokens": 12},
}
MESSAGES_USAGE: Json = {
    "input_tokens": 30,
    "cache_read_input_tokens": 60,
    "cache_creation_input_tokens": 10,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 7},
    "output_tokens": 30,
    "service_tier": "priority",
}
GEMINI_USAGE: Json = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 18,
    "thoughtsTokenCount": 12,
    "totalTokenCount": 130,
}
COHERE_USAGE: Json = {
    "billed_units": {"input_tokens": 100.0, "output_tokens": 30.0},
    "tokens": {"input_tokens": 140.0, "output_tokens": 32.0},
}
OLLAMA_COUNTS: Json = {"prompt_eval_count": 100, "eval_count": 30}
CONVERSE_USAGE: Json = {
    "inputTokens": 30,
    "outputTokens": 30,
    "totalTokens": 130,
    "cacheReadInputTokens": 60,
    "cacheWriteInputTokens": 10,
}


class ProviderServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.go_on = threading.Event()
        self.requests: list[tuple[str, Json]] = []
        self.attempts: Counter[str] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what many tests do."""


def provider_server() -> Iterator[ProviderServer]:
    server = ProviderServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ProviderServer
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        # A response that was made in the background, unless its prompt begins with "usual".
        name = self.path.partition("?")[0].rpartition("/")[2]
        if "/conversations/" in self.path:
            moment = "2026-01-02T03:04:05Z"
            times: Json = {"created_at": moment, "updated_at": moment}
            self._whole({"object": "conversation", "id": name, "model": "m"} | times)
            return
        told = _response("gpt-4o", name.removeprefix("resp_"))
        self._whole(told | {"background": "usual" not in self.path})

    def do_DELETE(self) -> None:
        self._whole({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = unquote(self.path.partition("?")[0])
        model = str(body.get("model") or path)  # Google's and Amazon's are in the path
        prompt = _prompt(body)
        self.server.requests.append((path, body))
        self.server.attempts[prompt] += 1
        if "fails" in model:
            self._error(400)
        elif "strict" in model and "stream_options" in body:
            self._error(400, "unknown field: stream_options")
        elif "flaky" in model and self.server.attempts[prompt] == 1:
            self._error(500)
        else:
            self._answer(path, body, model, prompt)

    def _answer(self, path: str, body: Json, model: str, prompt: str) -> None:
        streams = body.get("stream") is True
        if path.endswith("/chat/completions"):
            if streams:
                self._events(_chat_chunks(model, prompt, body), model, done=True)
            else:
                self._whole(_chat(model, prompt))
        elif path.endswith("/responses"):
            if streams:
                self._events(_response_events(model, prompt), model, named=True)
            elif body.get("background"):
                response = _response(model, prompt)
                self._whole(response | {"status": "queued", "usage": None, "background": True})
            else:
                self._whole(_response(model, prompt))
        elif "/conversations" in path:
            if streams:
                self._events(_conversation_events(model), model, named=True)
            else:
                self._whole(_conversation(model))
        elif path.endswith("/embeddings"):
            self._whole(_embeddings(model))
        elif path.endswith((":rawPredict", ":streamRawPredict")):  # Anthropic's, on Vertex AI
            name = path.rpartition("/")[2].partition(":")[0]
            if streams:
                self._events(_message_events(name, prompt), model, named=True)
            else:
                self._whole(_message(name, prompt))
        elif path.endswith("/messages"):
            if streams:
                self._events(_message_events(model, prompt), model, named=True)
            else:
                self._whole(_message(model, prompt))
        elif path == "/v2/chat":
            if streams:
                self._events(_cohere_events(prompt), model)
            else:
                self._whole(_cohere(prompt))
        elif path == "/api/chat":
            lines = _ollama_lines(model)
            if streams:
                parts = [json.dumps(line).encode() + b"\n" for line in lines]
                self._streamed(parts, model, "application/x-ndjson", {})
            else:
                message = {"role": "assistant", "content": "".join(WORDS)}
                self._whole(lines[-1] | {"message": message})
        elif path.endswith("/count_tokens"):
            self._whole({"input_tokens": 5})
        elif path.endswith(":generateContent"):
            self._whole(_content(model, prompt))
        elif path.endswith(":batchEmbedContents"):
            usage = {"promptTokenCount": 8, "totalTokenCount": 8}
            self._whole({"embeddings": [{"values": [0.5]}], "usageMetadata": usage})
        elif path.endswith(":streamGenerateContent"):
            if "tools" in model and not _has_result(body):
                self._events([_tool_call(model, prompt)], model)
            else:
                self._events(_content_chunks(model, prompt), model)
        elif path.endswith("/converse"):
            self._whole(_converse(model), {"x-amzn-RequestId": f"req-{prompt}"})
        elif path.endswith(("/converse-stream", "/invoke-with-response-stream")):
            self._frames(_frames(path, model, prompt), model, prompt)
        elif path.endswith("/invoke"):
            self._invoked(model, prompt)
        else:
            self._error(404)

    def _invoked(self, model: str, prompt: str) -> None:
        headers = {"x-amzn-RequestId": f"req-{prompt}"}
        if "claude" in model:
            self._whole(_message(model, prompt), headers)
            return
        if "embed" in model:
            headers["x-amzn-bedrock-input-token-count"] = "8"
            self._whole({"embedding": [0.5], "inputTextTokenCount": 8}, headers)
            return
        headers["x-amzn-bedrock-input-token-count"] = "100"
        headers["x-amzn-bedrock-output-token-count"] = "30"
        self._whole({"generation": "".join(WORDS)}, headers)

    def _error(self, status: int, message: str = "as asked") -> None:
        self._send(status, {"error": {"message": message, "type": "test", "code": status}}, {})

    def _whole(self, answer: Json, headers: dict[str, str] | None = None) -> None:
        self._send(200, answer, headers or {})

    def _send(self, status: int, answer: Json, headers: dict[str, str]) -> None:
        text = json.dumps(answer, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def _events(
        self, events: list[Json], model: str, *, named: bool = False, done: bool = False
    ) -> None:
        parts = [
            (f"event: {event['type']}\n" if named else "")
            + f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
            for event in events
        ]
        if done:
            parts.append("data: [DONE]\n\n")
        self._streamed([part.encode() for part in parts], model, "text/event-stream", {})

    def _frames(self, frames: list[bytes], model: str, prompt: str) -> None:
        kind = "application/vnd.amazon.eventstream"
        self._streamed(frames, model, kind, {"x-amzn-RequestId": f"req-{prompt}"})

    def _streamed(self, parts: list[bytes], model: str, kind: str, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name, value)
        if "zipped" in model:
            self.send_header("Content-Encoding", "gzip")
            zipped = zlib.compressobj(wbits=31)
            parts = [zipped.compress(part) + zipped.flush(zlib.Z_SYNC_FLUSH) for part in parts]
            parts.append(zipped.flush())
        self.end_headers()
        half = len(parts) // 2
        for number, part in enumerate(parts):
            if number == half and "waits" in model:
                self.server.go_on.wait(10)
            if number == half and "cut" in model:
                self.close_connection = True
                return
            with suppress(OSError):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        with suppress(OSError):
            self.wfile.write(b"0\r\n\r\n")


def _prompt(body: Json) -> str:
    """Return the text of the request, wherever its form has it."""
    found: object = body.get("input") or body.get("prompt")
    for name in ("messages", "contents"):
        found = found or body.get(name)
    while not isinstance(found, str):
        if isinstance(found, list):
            found = found[-1]
        elif isinstance(found, dict):
            found = found.get("content") or found.get("parts") or found.get("text")
        else:
            return ""
    return found


def _chat(model: str, prompt: str) -> Json:
    answer: Json = {
        "id": f"chatcmpl-{prompt}",
        "object": "chat.completion",
        "created": 1750000000,
        "model": f"{model}-2024-08-06",
        "service_tier": "priority",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "".join(WORDS), "refusal": None},
            }
        ],
        "usage": OPENAI_USAGE,
    }
    return answer | ({"usage": None} if "silent" in model else {})


def _chat_chunks(model: str, prompt: str, body: Json) -> list[Json]:
    options = body.get("stream_options")
    asked = isinstance(options, dict) and bool(options.get("include_usage"))
    is_unasked = "mistral" in model  # whose last chunk tells the usage anyway
    base: Json = {
        "id": f"chatcmpl-{prompt}",
        "object": "chat.completion.chunk",
        "created": 1750000000,
        "model": f"{model}-2024-08-06",
        "service_tier": "priority",
    }

    def chunk(delta: Json, reason: str | None = None) -> Json:
        choice = {"delta": delta, "logprobs": None, "finish_reason": reason}
        choices = [choice | {"index": number} for number in range(body.get("n") or 1)]
        return base | {"choices": choices} | ({"usage": None} if asked else {})

    chunks = [chunk({"role": "assistant", "content": ""})]
    if "filtered" in model:
        first = base | {"choices": [], "prompt_filter_results": []}
        chunks.insert(0, first | ({"usage": None} if asked else {}))
    chunks += [chunk({"content": word}) for word in WORDS]
    chunks.append(chunk({}, "stop"))
    if "running" in model:
        for number, one in enumerate(chunks):
            used = {"prompt_tokens": 100, "completion_tokens": number}
            one["usage"] = used | {"total_tokens": 100 + number}
    if is_unasked:
        chunks[-1]["usage"] = OPENAI_USAGE
    elif asked and "silent" not in model:
        chunks.append(base | {"choices": [], "usage": OPENAI_USAGE})
    return chunks


def _response(model: str, prompt: str) -> Json:
    return {
        "id": f"resp_{prompt}",
        "object": "response",
        "created_at": 1750000000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": f"{model}-2024-08-06",
        "output": [
            {
                "id": f"msg_{prompt}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "".join(WORDS), "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "service_tier": "priority",
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSES_USAGE,
    }


def _response_events(model: str, prompt: str) -> list[Json]:
    whole = _response(model, prompt)
    begun = whole | {"status": "in_progress", "usage": None, "output": []}
    place: Json = {"item_id": f"msg_{prompt}", "output_index": 0, "content_index": 0}
    item: Json = {
        "id": f"msg_{prompt}", "type": "message", "role": "assistant",
        "status": "in_progress", "content": [],
    }  # fmt: skip
    part: Json = {"type": "output_text", "text": "", "annotations": []}
    text = "".join(WORDS)
    events: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *[
            {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
            for word in WORDS
        ],
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.completed", "response": whole},
    ]
    if "refused" in model:
        events[2:] = [{"type": "response.failed", "response": begun | {"status": "failed"}}]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def _embeddings(model: str) -> Json:
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    } | ({"id": "embedded"} if "mistral" in model else {})


def _conversation(model: str) -> Json:
    usage = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}
    output = {"type": "message.output", "content": "".join(WORDS), "role": "assistant"}
    return {
        "object": "conversation.response",
        "conversation_id": "conv_1",
        "outputs": [output | {"model": model}],
        "usage": usage,
    }


def _conversation_events(model: str) -> list[Json]:
    delta: Json = {"type": "message.output.delta", "id": "msg_1", "model": model}
    return [
        {"type": "conversation.response.started", "conversation_id": "conv_1"},
        *[delta | {"content": word} for word in WORDS],
        {"type": "conversation.response.done", "usage": _conversation(model)["usage"]},
    ]


def _message(model: str, prompt: str) -> Json:
    return {
        "id": f"msg_{prompt}",
        "type": "message",
        "role": "assistant",
        "model": model.split("/")[2] if "/" in model else model,
        "content": [{"type": "text", "text": "".join(WORDS)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": MESSAGES_USAGE,
    }


def _message_events(model: str, prompt: str) -> list[Json]:
    begun = _message(model, prompt)
    begun |= {"content": [], "stop_reason": None, "usage": MESSAGES_USAGE | {"output_tokens": 1}}
    return [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": word},
            }
            for word in WORDS
        ],
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 17},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 30},
        },
        {"type": "message_stop"},
    ]


def _content(
    model: str, prompt: str, text: str = "".join(WORDS), usage: Json | None = None
) -> Json:
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": text}]},
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": usage or GEMINI_USAGE,
        "modelVersion": "gemini-2.5-flash-001",
        "responseId": prompt,
    }


def _has_result(body: Json) -> bool:
    return "functionResponse" in json.dumps(body)


def _tool_call(model: str, prompt: str) -> Json:
    answer = _content(model, f"{prompt} call")
    part = {"functionCall": {"name": "look_up", "args": {}}}
    answer["candidates"][0]["content"]["parts"] = [part]  # type: ignore[index]
    return answer


def _content_chunks(model: str, prompt: str) -> list[Json]:
    chunks: list[Json] = []
    words = ("finishReason", "usageMetadata", "!") if "marks" in model else WORDS
    for number, word in enumerate(words, 1):
        used = 6 * number
        usage = GEMINI_USAGE | {"candidatesTokenCount": used, "totalTokenCount": 112 + used}
        chunk = _content(model, prompt, word, usage)
        if number < len(words):
            del chunk["candidates"][0]["finishReason"]  # type: ignore[index]
        if number == 2 and "sparse" in model:
            del chunk["usageMetadata"]
        chunks.append(chunk)
    if "blocked" in model:
        usage = {"promptTokenCount": 100, "totalTokenCount": 100}
        blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
        return [blocked | {"responseId": prompt, "modelVersion": model}]
    return chunks


def _cohere(prompt: str) -> Json:
    return {
        "id": f"cohere-{prompt}",
        "finish_reason": "COMPLETE",
        "message": {
            "role": "assistant",
            "content": [{"type": "text", "text": "".join(WORDS)}],
        },
        "usage": COHERE_USAGE,
    }


def _cohere_events(prompt: str) -> list[Json]:
    deltas: list[Json] = [{"message": {"content": {"text": word}}} for word in WORDS]
    message: Json = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}
    message |= {"citations": []}
    return [
        {"type": "message-start", "id": f"cohere-{prompt}", "delta": {"message": message}},
        *[{"type": "content-delta", "index": 0, "delta": delta} for delta in deltas],
        {
            "type": "message-end",
            "id": f"cohere-{prompt}",
            "delta": {"finish_reason": "COMPLETE", "usage": COHERE_USAGE},
        },
    ]


def _ollama_lines(model: str) -> list[Json]:
    base: Json = {"model": model, "created_at": "2026-11-30T08:00:00Z", "done": False}
    said: list[Json] = [
        base | {"message": {"role": "assistant", "content": word}} for word in WORDS
    ]
    end: Json = {"message": {"role": "assistant", "content": ""}, "done": True}
    return [*said, base | end | OLLAMA_COUNTS]


def _converse(model: str) -> Json:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": "".join(WORDS)}]}},
        "stopReason": "end_turn",
        "usage": CONVERSE_USAGE,
        "metrics": {"latencyMs": 7},
    }


def _frames(path: str, model: str, prompt: str) -> list[bytes]:
    if path.endswith("/invoke-with-response-stream"):
        is_known = "claude" in model
        said: list[Json] = [{"generation": word} for word in WORDS]
        events = _message_events(model, prompt) if is_known else said
        metrics = {"inputTokenCount": 30 if is_known else 100, "outputTokenCount": 30}
        events[-1] |= {"amazon-bedrock-invocationMetrics": metrics}
        return [_invoked_frame(event) for event in events]
    if "breaks" in model:
        error = _frame("modelStreamErrorException", {"message": "as asked"}, "exception")
        return [_frame("messageStart", {"role": "assistant"}), error]
    return [
        _frame("messageStart", {"role": "assistant"}),
        *[
            _frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}})
            for word in WORDS
        ],
        _frame("contentBlockStop", {"contentBlockIndex": 0}),
        _frame("messageStop", {"stopReason": "end_turn"}),
        _frame("metadata", {"usage": CONVERSE_USAGE, "metrics": {"latencyMs": 7}}),
    ]


def _invoked_frame(event: Json) -> bytes:
    text = base64.b64encode(json.dumps(event).encode()).decode()
    return _frame("chunk", {"bytes": text})


def _frame(kind: str, payload: Json, message: str = "event") -> bytes:
    """Return a message of Amazon's event stream encoding."""
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\7" + struct.pack("!H", len(value)) + value.encode()
        for name, value in (
            (":message-type", message),
            (f":{message}-type", kind),
            (":content-type", "application/json"),
        )
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(body), len(headers))
    whole = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + body
    return whole + struct.pack("!I", zlib.crc32(whole))
