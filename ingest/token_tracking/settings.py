"""Settings of a tracker: arguments first, then `TOKEN_TRACKING_*`, then defaults."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  # pydantic needs it at run time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from .errors import SettingsError

PREFIX = "TOKEN_TRACKING_"


class TrackerSettings(BaseModel):
    """What a tracker can be told; each field is also read from `TOKEN_TRACKING_<FIELD>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=True, description="False: every call is a no-op that returns True"
    )
    dsn: SecretStr | None = Field(
        default=None, description="libpq connection string or URL; default: libpq's PG* variables"
    )
    max_wait: float = Field(
        default=2.0, gt=0, le=60, description="seconds that a call waits at most"
    )
    spool_dir: Path | None = Field(
        default=None,
        description="folder of what waits on local disk, for one database only; "
        "default: one for each database, in the user's state folder",
    )
    spool_max_bytes: int = Field(
        default=4 * 2**30, ge=2**16, description="most bytes on disk for one process's spool"
    )
    on_error: Literal["return", "raise"] = Field(
        default="return", description="raise: raise what a call would answer with False"
    )


def _is_off(enabled: object) -> bool:
    try:
        return enabled is not None and not TypeAdapter(bool).validate_python(enabled)
    except ValidationError:
        return False


def load_settings(**given: object) -> TrackerSettings:
    """Return the settings from arguments (None is as good as absent) and the environment.

    Raises:
        SettingsError: a value breaks a rule; the message names the setting, never its value.

    """
    values: dict[str, object] = {}
    for name in TrackerSettings.model_fields:
        if (text := os.environ.get(PREFIX + name.upper())) not in {None, ""}:
            values[name] = text
    values |= {name: value for name, value in given.items() if value is not None}
    if _is_off(values.get("enabled")):
        return TrackerSettings(enabled=False)  # which needs no other setting, right or wrong
    try:
        return TrackerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        message = f"setting {name} ({PREFIX}{name.upper()}): {first['msg']}"
        raise SettingsError(message) from None
