"""Validates the name of dbt's schema, from which other names and SQL texts are derived."""

from __future__ import annotations

import re
from typing import Final

import typer

# PostgreSQL truncates names to 63 bytes; dbt appends this suffix for the schema of failing rows.
LONGEST: Final = 63 - len("_dbt_test__audit")
_NEVER: Final = re.compile(r"""["'\\\x00-\x1f\x7f]""")


def schema_name(name: str) -> str:
    """Return the name if dbt can use it, by the rules of macros/overrides/generate_schema_name.sql.

    Raises:
        typer.BadParameter: dbt cannot use the name.

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
