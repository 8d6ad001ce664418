"""The output of commands: results to standard output, everything else to standard error.

All output of all commands goes through this module. Ids, labels, file names and database messages
are untrusted text: each line or table cell is shown `escaped`, so that no text can control the
terminal, look like another one or start a new line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..escapes import escaped, json_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.progress import Progress
    from rich.segment import Segment
    from rich.table import Table

_WIDTH_WITHOUT_TERMINAL = 140


class _SafeConsole(Console):
    """Escapes all output; a `str` is escaped before the layout."""

    def render_str(self, text: str, **options: object) -> Text:
        return super().render_str(escaped(text), **options)  # pyright: ignore[reportArgumentType]

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Renderables other than `str`; their line ends come from rich.
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=escaped(segment.text, keep="\n\\"))


def _console(*, stderr: bool) -> Console:
    console = _SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


@dataclass(frozen=True)
class Terminal:
    """The two output streams of a command; plain text if a stream is not a terminal."""

    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def steps(self) -> Progress:
        """Return a progress bar, removed at the end, and invisible without a terminal."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.err,
            transient=True,
            disable=not self.err.is_terminal,
        )

    def result(self, *lines: str) -> None:
        """Print the command's result, which another program can read."""
        for line in lines:
            self.out.print(line, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a result as a table."""
        self.out.print(table)

    def json(
        self,
        value: object,
        *,
        indent: int | None = None,
        default: Callable[[object], object] | None = None,
    ) -> None:
        """Print a result as JSON, with JSON's own escapes."""
        self.out.print(Text(json_text(value, indent=indent, default=default)), soft_wrap=True)

    def say(self, *lines: str) -> None:
        """Print a message that is not a result."""
        for line in lines:
            self.err.print(line, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.err.print(f"Warning: {text}", style="yellow", soft_wrap=True)

    def fail(self, text: str, *more: str) -> None:
        """Print in one sentence why the command failed; `more` are further lines."""
        for line in (f"Error: {text}", *more):
            self.err.print(line, style="red", soft_wrap=True)
