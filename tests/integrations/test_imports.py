"""Each adapter imports its library, and nothing else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = ("litellm", "opentelemetry", "langchain_core", "openai")
UNUSED = """
import importlib, pkgutil, sys
import token_tracking
for name in token_tracking.__all__:
    getattr(token_tracking, name)
import token_tracking.integrations.listener
print(*(name for name in {libraries} if name in sys.modules))
"""
USED = """
import sys
import token_tracking.integrations.{module}
print(*(name for name in {libraries} if name in sys.modules))
"""


def printed(script: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_the_package_imports_none_of_the_libraries():
    assert printed(UNUSED.format(libraries=LIBRARIES)) == set()


@pytest.mark.parametrize(
    ("module", "library"), [("opentelemetry", "opentelemetry"), ("langchain", "langchain_core")]
)
def test_an_adapter_imports_its_library_only(module: str, library: str):
    assert printed(USED.format(module=module, libraries=LIBRARIES)) == {library}
