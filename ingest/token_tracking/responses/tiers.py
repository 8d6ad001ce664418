"""The names of service tiers, of which the usual one is None."""

from __future__ import annotations

from typing import Final

# No tier was chosen, or the one that every request has.
_USUAL: Final = frozenset(
    {
        *("", "auto", "default", "on_demand", "standard", "standard_only", "unspecified"),
        "traffic_type_unspecified",
    }
)


def unusual_tier(*told: object) -> str | None:
    """Return the first tier that is not the usual one, in lower case."""
    for value in told:
        if isinstance(value, str):
            tier = str.__str__(value).lower()  # enums of some libraries are texts, too
            if tier not in _USUAL:
                return tier
    return None
