"""The providers' libraries, each imported when it is first used.

Together they take seconds to import, which every worker that collects the tests would pay.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Library:
    def __init__(self, name: str) -> None:
        self._module = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # pytest asks each parameter for its name
        return getattr(import_module(self._module), name)


anthropic = Library("anthropic")
boto3 = Library("boto3")
botocore_config = Library("botocore.config")
botocore_exceptions = Library("botocore.exceptions")
genai = Library("google.genai")
mistralai = Library("mistralai.client")
openai = Library("openai")
