"""Idempotency keys: made by us where the caller has none, made of parts where it has."""

from __future__ import annotations

import hashlib
import json
import os
import time


def make_idempotency_key(*parts: object) -> str:
    """Return a key that is the same for the same parts, in any process: 64 hexadecimal digits.

    It is the sha256 of the JSON array of the parts as text. Take what names the call (an operation
    or message id), never what changes with a retry (a counter, a time): another key is another
    event, and the call would be counted again.

    Example:
        >>> make_idempotency_key("conversation-7", "message-3")[:12]
        '205b77e0ab65'

    """
    text = json.dumps([str(part) for part in parts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def new_event_key() -> str:
    """Return a fresh UUIDv7 (RFC 9562) as text: random, and in the order of time."""
    made = f"{time.time_ns() // 1_000_000:012x}"
    random = os.urandom(10).hex()
    variant = "89ab"[int(random[3], 16) & 3]
    return f"{made[:8]}-{made[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
