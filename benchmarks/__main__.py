"""Run the benchmarks: `python -m benchmarks [NAME ...]`, all of them without a name."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
import time

import benchmarks

from .harness import results
from .harness.bench import Bench


def main(names: list[str]) -> int:
    """Run each on a fresh and durable server; the modules beside this one are the benchmarks."""
    known = [one.name for one in pkgutil.iter_modules(benchmarks.__path__) if not one.ispkg]
    known.remove("__main__")
    if unknown := [name for name in names if name not in known]:
        print(f"no benchmark is named {', '.join(unknown)}; there are: {', '.join(known)}")
        return 2
    for name in names or known:
        module = importlib.import_module(f"benchmarks.{name}")
        title = f"{name}: {(module.__doc__ or '').splitlines()[0]}"
        print(title, file=sys.stderr)
        started = time.monotonic()
        with Bench.open() as bench:
            database = bench.database()
            figures = module.run(bench)
            with database.connect() as connection:
                server = str(connection.info.parameter_status("server_version"))
        results.show(title, figures, time.monotonic() - started)
        results.keep(title, figures, server)
    return 0


if __name__ == "__main__":
    # The load has conflicts on purpose, each of which is a warning to a service.
    logging.disable(logging.WARNING)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
