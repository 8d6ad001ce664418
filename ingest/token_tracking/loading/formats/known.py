"""The exports that `load --from` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import LoadError
from .langfuse import LANGFUSE
from .litellm import LITELLM
from .openai_batch import OPENAI_BATCH
from .otel import OTEL

if TYPE_CHECKING:
    from .export import Export

_EXPORTS: Final = {
    "litellm": LITELLM,
    "openai-batch": OPENAI_BATCH,
    "langfuse": LANGFUSE,
    "otel": OTEL,
}


def export_of(name: str) -> Export:
    """Return the export of that name.

    Raises:
        LoadError: there is none.

    """
    if name not in _EXPORTS:
        message = f"--from: {name!r} is not one of {', '.join(_EXPORTS)}"
        raise LoadError(message)
    return _EXPORTS[name]
