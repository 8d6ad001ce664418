"""Where commands write: results to standard output, everything else to standard error.

All output of all commands goes through this module. Ids, labels, file names and what a database
says are other people's texts: a line or a cell of a table is shown `escaped`, so that none of them
can command the terminal, look like another one or begin a line of its own.
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
    """Writes what it is given `escaped`: before it is laid out where that is a `str`."""

    def render_str(self, text: str, **options: object) -> Text:
        return super().render_str(escaped(text), **options)  # pyright: ignore[reportArgumentType]

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Whatever was no `str`; the line ends are of our own.
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
    """The two streams of a command; plain text where they are no terminal."""

    out: Console = field(default_factory=lambda: _console(stderr=False))
    err: Console = field(default_factory=lambda: _console(stderr=True))

    def steps(self) -> Progress:
        """Return a bar of steps done, gone when they are; invisible where there is no terminal."""
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
        """Print what the command was asked for, so that another program can read it."""
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
        """Print a result as JSON, whose own escapes it has instead of ours."""
        self.out.print(Text(json_text(value, indent=indent, default=default)), soft_wrap=True)

    def say(self, *lines: str) -> None:
        """Tell people something that is no result."""
        for line in lines:
            self.err.print(line, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Tell people what they should know and may have missed."""
        self.err.print(f"Warning: {text}", style="yellow", soft_wrap=True)

    def fail(self, text: str, *more: str) -> None:
        """Say in one sentence why the command did not do what it was told; `more` are lines."""
        for line in (f"Error: {text}", *more):
            self.err.print(line, style="red", soft_wrap=True)
