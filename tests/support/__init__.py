"""Code shared by tests; no test module imports another one."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
