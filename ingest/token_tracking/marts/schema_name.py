"""The name of the schema that dbt builds in, which other names and texts of SQL are made of."""

from __future__ import annotations

import re
from typing import Final

import typer

# PostgreSQL cuts names at 63 bytes; the schema of what tests found is named by this and an ending.
LONGEST: Final = 63 - len("_dbt_test__audit")
_NEVER: Final = re.compile(r"""["'\\\x00-\x1f\x7f]""")


def schema_name(name: str) -> str:
    """Return the name where dbt can build under it: as macros/overrides/generate_schema_name.sql.

    Raises:
        typer.BadParameter: it cannot.

    """
    size = len(name.encode(errors="surrogatepass"))
    if not name or _NEVER.search(name):
        message = (
            f"{name!r}: the name of the schema must be there, without quotes, backslashes and "
            "control characters"
        )
        raise typer.BadParameter(message)
    if size > LONGEST:
        message = (
            f"{name!r}: the name of the schema has {size} bytes, and at most {LONGEST} leave room "
            "for the names that dbt makes of it, which PostgreSQL cuts at 63"
        )
        raise typer.BadParameter(message)
    return name
