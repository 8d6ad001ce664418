"""The duration of the scalable tests, which `make soak` sets."""

from __future__ import annotations

import os

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))

SEED = int(os.environ.get("SEED", "0"))
