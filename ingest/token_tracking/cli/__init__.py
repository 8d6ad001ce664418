"""The command line `token-tracking`: one file a command, imported when it runs."""

from .app import main

__all__ = ["main"]
