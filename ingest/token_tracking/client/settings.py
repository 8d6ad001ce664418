"""Settings of a tracker: arguments first, then `TOKEN_TRACKING_*`, then defaults.

Checked without pydantic: the first call creates the default tracker and must not wait for an
import.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from ..errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fallback import FallbackFunction

PREFIX = "TOKEN_TRACKING_"
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


class _BadValueError(ValueError):
    """An invalid value, described without showing a secret."""


class SecretText:
    """Text that `repr` and `str` hide."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "SecretText('**********')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretText) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True)
class NamedFunction:
    """A function given by its import path; the thread that calls it imports it."""

    module: str
    name: str

    def found(self) -> Callable[..., object]:
        """Return the function.

        Raises:
            SettingsError: it does not exist, or is token_tracking's own.

        """
        try:
            found: object = import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise self._error(f"cannot be imported, {type(error).__name__}") from error
        if not callable(found):
            raise self._error("is not a function")
        if getattr(found, "__module__", "").split(".")[0] == "token_tracking":
            raise self._error("is token_tracking's own: name the earlier implementation")
        return found

    def _error(self, why: str) -> SettingsError:
        place = f"{self.module}:{self.name}"
        return SettingsError(f"setting fallback ({PREFIX}FALLBACK): {place} {why}")


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """The settings of a tracker; each field is also read from `TOKEN_TRACKING_<FIELD>`.

    Each value may also be given as text.

    Args:
        enabled: if False, every call is a no-op that returns True.
        dsn: libpq connection string or URL; default: libpq's PG* variables.
        max_wait: maximum time that a call waits, in seconds.
        spool_dir: folder of the local spool, for one database only; default: one folder for each
            database, in the user's state folder.
        spool_max_bytes: maximum size of one process's spool on disk, in bytes.
        on_error: "raise": raise an error instead of returning False.
        fallback: a function, or its import path as "package.module:function", that is called if
            neither database nor disk can take an event; sync or async, with the ten original
            keyword arguments.

    Raises:
        SettingsError: a value is invalid; the message names the setting, never its value.

    """

    enabled: bool = True
    dsn: SecretText | None = None
    max_wait: float = 2.0
    spool_dir: Path | None = None
    spool_max_bytes: int = 4 * 2**30
    on_error: Literal["return", "raise"] = "return"
    fallback: FallbackFunction | NamedFunction | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            try:
                checked = _CHECKS[field.name](value)
            except (TypeError, ValueError, OverflowError) as error:
                name = field.name
                rule = str(error) if isinstance(error, _BadValueError) else _RULES[name]
                message = f"setting {name} ({PREFIX}{name.upper()}): {rule}"
                raise SettingsError(message) from None
            object.__setattr__(self, field.name, checked)


def _truth(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _secret(value: object) -> SecretText:
    return value if isinstance(value, SecretText) else SecretText(_text(value))


def _dsn(value: object) -> SecretText:
    given = _secret(value).get_secret_value().strip()
    # Check with the driver only if it is imported already: no call may wait for its import. If not,
    # the connecting thread checks.
    find_problem = getattr(sys.modules.get("token_tracking.target"), "dsn_problem", None)
    if find_problem is not None and (problem := find_problem(given)):
        raise _BadValueError(problem)
    return SecretText(given)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _wait(value: object) -> float:
    seconds = float(cast("str", value))
    if isinstance(value, bool) or not math.isfinite(seconds) or not 0 < seconds <= 60:
        raise ValueError
    return seconds


def _folder(value: object) -> Path:
    return Path(cast("str", value))


def _bytes(value: object) -> int:
    number = float(cast("str", value))
    if isinstance(value, bool) or not number.is_integer() or number < 2**16:
        raise ValueError
    return int(number)


def _on_error(value: object) -> str:
    if value not in {"return", "raise"}:
        raise ValueError
    return cast("str", value)


def _fallback(value: object) -> object:
    if callable(value) or isinstance(value, NamedFunction):
        return value
    module, _, name = _text(value).strip().partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ValueError
    return NamedFunction(module, name)


_CHECKS: Final[dict[str, Callable[[object], object]]] = {
    "enabled": _truth,
    "dsn": _dsn,
    "max_wait": _wait,
    "spool_dir": _folder,
    "spool_max_bytes": _bytes,
    "on_error": _on_error,
    "fallback": _fallback,
}
_RULES: Final = {
    "enabled": "must be true or false, 1 or 0, yes or no, on or off",
    "dsn": "must be text",
    "max_wait": "must be a number of seconds above 0 and up to 60",
    "spool_dir": "must be the path of a folder",
    "spool_max_bytes": "must be a whole number of bytes, at least 65536",
    "on_error": "must be return or raise",
    "fallback": "must be a function, or where one is, as package.module:function",
}


def load_settings(**given: object) -> TrackerSettings:
    """Return the settings from arguments (None means not given) and the environment.

    Raises:
        SettingsError: a value is invalid; the message names the setting, never its value.

    """
    values: dict[str, object] = {}
    for field in fields(TrackerSettings):
        if (text := os.environ.get(PREFIX + field.name.upper())) not in {None, ""}:
            values[field.name] = text
    values |= {name: value for name, value in given.items() if value is not None}
    if str(values.get("enabled")).strip().lower() in _FALSE:
        return TrackerSettings(enabled=False)  # ignores all other settings, valid or not
    return TrackerSettings(**values)  # pyright: ignore[reportArgumentType]  # checked in there
