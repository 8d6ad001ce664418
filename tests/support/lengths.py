"""How long the tests run that can run longer: `make soak` sets it."""

from __future__ import annotations

import os

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))


SEED = int(os.environ.get("SEED", "0"))
