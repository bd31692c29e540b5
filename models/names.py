"""Names that a user types: what to say about one that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 16
"""Names listed in one message where none is near; the data sheets and dtypes are fewer."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a `name` that is not among the `known` ones: one line that offers the nearest.

    `kind` says what was asked for ("GPU", "dtype"). Where nothing is near, known names are
    listed. The caller raises it.
    """
    by_folded = {choice.casefold(): choice for choice in sorted(known)}
    asked = str(name).casefold()[:200]
    longer = [folded for folded in by_folded if asked and folded.startswith(asked)]
    near = longer or get_close_matches(asked, by_folded, n=3, cutoff=0.6)
    if near:
        offer = "did you mean " + " or ".join(by_folded[folded] for folded in near[:3]) + "?"
    else:
        listed = list(by_folded.values())
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        offer = "known: " + ", ".join(listed[:_LISTED]) + more
    return ValueError(f"unknown {kind} {quoted(name)}; {offer}")


def quoted(value: object, limit: int = 60) -> str:
    """`value` as a message shows it: its repr on one line, cut to `limit` characters."""
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
