"""Idempotency keys: random if the caller gives none, or derived from the caller's parts."""

from __future__ import annotations

import hashlib
import json
import os
import time


def make_idempotency_key(*parts: object) -> str:
    """Return a key that is the same for the same parts, in any process: 64 hexadecimal digits.

    The key is the SHA-256 of the JSON array of the parts as text. Use parts that identify the call
    (an operation or message id), never parts that change with a retry (a counter, a time): another
    key is another event, and the call would be counted twice.

    Example:
        >>> make_idempotency_key("conversation-7", "message-3")[:12]
        '205b77e0ab65'

    """
    text = json.dumps([str(part) for part in parts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def new_event_key() -> str:
    """Return a new UUIDv7 (RFC 9562) as text: random, and sorted by time."""
    made = f"{time.time_ns() // 1_000_000:012x}"
    random = os.urandom(10).hex()
    variant = "89ab"[int(random[3], 16) & 3]
    return f"{made[:8]}-{made[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
