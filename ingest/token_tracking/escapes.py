r"""Escapes text from data, so that a terminal displays it instead of interpreting it.

Characters that are invisible, move the cursor, change the reading direction or end a line are
written like in a Python string: \x1b, \u202e, \n. A backslash is doubled, so that different texts
stay different.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# Invisible characters that Unicode classifies as letters, marks or symbols.
_WITHOUT_INK: Final = (
    "\u034f\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff"
)
_UNSEEN: Final = re.compile(f"[{_WITHOUT_INK}]")
_SPACES: Final = re.compile(r"^ +| +$|(?<= ) +")


class Escaped(str):
    """A text that is escaped already."""

    __slots__ = ()


def escaped(text: str, *, keep: str = "") -> Escaped:
    """Return a text with every character visible; the characters in `keep` are not escaped."""
    if isinstance(text, Escaped):
        return text
    if text.isascii() and text.isprintable() and "\\" not in text:
        return Escaped(text)
    return Escaped("".join(one if one in keep or _is_seen(one) else _escape(one) for one in text))


def spelled_out(text: str) -> Escaped:
    """Return a text as ASCII without spaces that are easily overlooked: no two texts look alike."""
    return Escaped(_SPACES.sub(lambda found: r"\x20" * len(found.group()), _escape(text)))


def likeness(text: str) -> str:
    """Return a value that is equal for texts which people would confuse.

    Such texts differ in case, white space, invisible characters, or the Unicode form of a letter.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(one for one in decomposed if not one.isspace() and _is_seen(one))


def json_text(
    value: object, *, indent: int | None = None, default: Callable[[object], object] | None = None
) -> str:
    """Return a value as JSON in printable ASCII, which is safe for a terminal, too."""
    return json.dumps(value, indent=indent, default=default).replace("\x7f", r"\u007f")


def _is_seen(one: str) -> bool:
    return one.isprintable() and one != "\\" and not _UNSEEN.match(one)


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")
