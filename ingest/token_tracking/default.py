"""The module-level functions that services call, and the default tracker behind them."""

from __future__ import annotations

import inspect
import os
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from .client.logs import SafeLogger
from .client.settings import TrackerSettings, load_settings
from .errors import SettingsError
from .tracker import UsageTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

logger = SafeLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_default: Final[dict[None, UsageTracker]] = {}


def default_tracker() -> UsageTracker:
    """Return the tracker behind the module's functions: created at first use, closed at exit.

    If a setting in the environment is invalid, the error is logged and every call returns False:
    metering must not make the service fail.
    """
    # No lock here: a signal handler that interrupts the first call could deadlock on it. If two
    # trackers are created at once, the first one is kept; the other one has started nothing.
    return _default.get(None) or _default.setdefault(None, _new_default())


def _configured(make: Callable[P, UsageTracker]) -> Callable[P, UsageTracker]:
    def configure(*args: P.args, **kwargs: P.kwargs) -> UsageTracker:
        """Configure the tracker behind the module's functions: once, before their first call.

        Accepts the arguments of `UsageTracker`; the others come from `TOKEN_TRACKING_*`.

        Raises:
            SettingsError: a setting is invalid, or the tracker already exists.

        Example:
            >>> configure(max_wait=1, fallback="billing.old:track")  # doctest: +SKIP

        """
        tracker = make(*args, **kwargs)
        if _default.setdefault(None, tracker) is not tracker:
            message = (
                "configure: the default tracker was made already, by a call or by configure; "
                "must be called once, before the first call"
            )
            raise SettingsError(message)
        return tracker

    configure.__signature__ = inspect.signature(make)  # pyright: ignore[reportFunctionMemberAccess]
    configure.__qualname__ = configure.__name__
    return configure


def _new_default() -> UsageTracker:
    try:
        return UsageTracker(settings=load_settings())
    except Exception as error:  # noqa: BLE001  # a broken set-up must not break the service
        said = str(error) if isinstance(error, SettingsError) else type(error).__name__
        logger.error("usage is not recorded: %s", said)
        refusing = UsageTracker(settings=TrackerSettings(spool_dir=Path(os.devnull)))
        refusing.close()
        return refusing


def _of_default(
    method: Callable[Concatenate[UsageTracker, P], R],
) -> Callable[P, R]:
    """Make a function that calls the method on the default tracker."""

    @wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_tracker(), *args, **kwargs)

    return _without_self(function)


def _of_default_async(
    method: Callable[Concatenate[UsageTracker, P], Coroutine[object, object, R]],
) -> Callable[P, Coroutine[object, object, R]]:
    @wraps(method)
    async def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return await method(default_tracker(), *args, **kwargs)

    return _without_self(function)


def _without_self(function: Callable[P, R]) -> Callable[P, R]:
    whole = inspect.signature(function)
    parameters = list(whole.parameters.values())[1:]
    function.__signature__ = whole.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
    function.__qualname__ = function.__name__
    return function


track_token_usage = _of_default_async(UsageTracker.track_token_usage)
track_response = _of_default_async(UsageTracker.track_response)
track_many = _of_default_async(UsageTracker.track_many)
void_usage = _of_default_async(UsageTracker.void_usage)
record_agent_owner = _of_default_async(UsageTracker.record_agent_owner)
track_token_usage_sync = _of_default(UsageTracker.track_token_usage_sync)
track_response_sync = _of_default(UsageTracker.track_response_sync)
track_many_sync = _of_default(UsageTracker.track_many_sync)
void_usage_sync = _of_default(UsageTracker.void_usage_sync)
record_agent_owner_sync = _of_default(UsageTracker.record_agent_owner_sync)
configure = _configured(UsageTracker)
