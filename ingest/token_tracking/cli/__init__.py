"""The command line `token-tracking`: one file per command, imported when the command runs."""

from .app import main

__all__ = ["main"]
