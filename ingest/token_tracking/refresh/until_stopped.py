"""Runs work that SIGTERM or Ctrl-C ends cleanly and in bounded time."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_DONE: Final = signal.SIGUSR1
_TIME_IS_UP: Final = signal.SIGALRM


def run_until_stopped(
    work: Callable[[threading.Event], None], *, grace: float, give_up: Callable[[str], None]
) -> bool:
    """Run `work` on a thread until it ends; return whether a signal set its event.

    After the first signal it has `grace` seconds to end. After that, or at once after a second
    signal, `give_up` is called with a message and the process exits immediately; PostgreSQL rolls
    back the running statement. Signals are awaited, not handled: dbt may be blocked in a query on
    any thread, where no Python handler would run.
    """
    awaited = _STOP | {_DONE, _TIME_IS_UP}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # new threads inherit it
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001  # raised again on the main thread
            errors.append(error)
        finally:
            os.kill(os.getpid(), _DONE)

    thread = threading.Thread(target=run, name="refresh", daemon=True)
    thread.start()
    first = signal.sigwait(awaited)
    if first in _STOP:
        stop.set()
        signal.setitimer(signal.ITIMER_REAL, grace)
        second = signal.sigwait(awaited)
        if second != _DONE:
            at_once = second in _STOP
            give_up("stopped at once" if at_once else f"stopped: a build took over {grace:g} s")
            os._exit(128 + second if at_once else 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    thread.join()
    if errors:
        raise errors[0]
    return first in _STOP
