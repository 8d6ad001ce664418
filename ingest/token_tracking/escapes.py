r"""Text that came from data, in the form in which a terminal shows it and does not obey it.

What cannot be seen, moves the cursor, turns the direction of reading or ends a line is written as
Python writes it in a string: \x1b, \u202e, \n. A backslash becomes two, so that the form tells
apart whatever differs.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# What takes no ink though Unicode calls it a letter, a mark or a symbol.
_WITHOUT_INK: Final = (
    "\u034f\u115f-\u1160\u17b4-\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff"
)
_UNSEEN: Final = re.compile(f"[{_WITHOUT_INK}]")
_SPACES: Final = re.compile(r"^ +| +$|(?<= ) +")


class Escaped(str):
    """A text that has this form."""

    __slots__ = ()


def escaped(text: str, *, keep: str = "") -> Escaped:
    """Return a text in which every character is seen; those of `keep` stay as they are."""
    if isinstance(text, Escaped):
        return text
    if text.isascii() and text.isprintable() and "\\" not in text:
        return Escaped(text)
    return Escaped("".join(one if one in keep or _is_seen(one) else _escape(one) for one in text))


def spelled_out(text: str) -> Escaped:
    """Return a text in ASCII, without a space that nobody notices: it is like no other text."""
    return Escaped(_SPACES.sub(lambda found: r"\x20" * len(found.group()), _escape(text)))


def likeness(text: str) -> str:
    """Return what is the same for texts that people take for one.

    They differ in case, white space, characters without ink, or in how Unicode writes a letter.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(one for one in decomposed if not one.isspace() and _is_seen(one))


def json_text(
    value: object, *, indent: int | None = None, default: Callable[[object], object] | None = None
) -> str:
    """Return a value as JSON in printable ASCII, which no terminal obeys either."""
    return json.dumps(value, indent=indent, default=default).replace("\x7f", r"\u007f")


def _is_seen(one: str) -> bool:
    return one.isprintable() and one != "\\" and not _UNSEEN.match(one)


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")
