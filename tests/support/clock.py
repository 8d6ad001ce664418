"""The clock of a server under libfaketime, which can be set while the server runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@dataclass
class Clock:
    """Seconds off the right time; the server's monotonic clock is left alone."""

    folder: Path

    def __post_init__(self) -> None:
        if not LIBRARIES:
            left_out = pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip
            left_out("libfaketime is not installed: apt-get install faketime")
        self.folder.chmod(0o755)  # root's server runs as another user
        self.set(0)
        self._file.chmod(0o644)

    @property
    def _file(self) -> Path:
        return self.folder / "time"

    def set(self, seconds: int) -> None:
        """Set it at once: the server reads the file whenever it asks for the time."""
        self._file.write_text(f"{seconds:+d}")

    def programs(self, bin_dir: Path) -> Path:
        """Return a folder with the programs that start a server with this clock."""
        programs = self.folder / "bin"
        programs.mkdir()
        for name in ("initdb", "pg_ctl"):
            (programs / name).write_text(
                "#!/bin/sh\n"
                f"export LD_PRELOAD={LIBRARIES[0]} FAKETIME_TIMESTAMP_FILE={self._file}"
                " FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n"
                f'exec {bin_dir / name} "$@"\n'
            )
            (programs / name).chmod(0o755)
        return programs
