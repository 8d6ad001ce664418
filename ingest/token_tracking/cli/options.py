"""Options, formats and exit codes shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from ..marts.schema_name import schema_name

FAILED: Final = 1
NOT_ALL_WELL: Final = 3  # done, but something needs attention; or there was nothing to do
INTERRUPTED: Final = 130

FOLDER: Final = Path(".token-tracking")
DATABASE: Final = "token_tracking"
SCHEMA: Final = "token_tracking"

FolderOption = Annotated[Path, typer.Option("--folder", help="Folder of the embedded server.")]
DatabaseOption = Annotated[str, typer.Option("--database", help="Name of the database.")]
SchemaOption = Annotated[
    str,
    typer.Option(
        "--schema", envvar="DBT_SCHEMA", callback=schema_name, help="The schema of the marts."
    ),
]


class TableFormat(StrEnum):
    """The output format of a result."""

    TABLE = "table"
    JSON = "json"


TableFormatOption = Annotated[
    TableFormat, typer.Option("--format", help="A table for people, or JSON for programs.")
]
