"""Where commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

_WIDTH_WITHOUT_TERMINAL = 140


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
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

    def result(self, text: str) -> None:
        """Print what the command was asked for, so that another program can read it."""
        self.out.print(text, soft_wrap=True)

    def say(self, text: str) -> None:
        """Tell people something that is no result."""
        self.err.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Tell people what they should know and may have missed."""
        self.err.print(f"Warning: {text}", style="yellow", soft_wrap=True)

    def fail(self, text: str) -> None:
        """Say in one sentence why the command did not do what it was told."""
        self.err.print(f"Error: {text}", style="red", soft_wrap=True)
