"""The command line `token-tracking`: one file a command, imported when it runs."""

from .command_line import app, main

__all__ = ["app", "main"]
