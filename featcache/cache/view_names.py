"""Names of views, and of several views that a head reads side by side: `last/mean,-3/mean`."""

from __future__ import annotations

from collections.abc import Iterable

SHORT = 24  # characters of a name that is shown whole


def split_view(view: str) -> tuple[str, ...]:
    """The views in a name, in their order: one, or several that are joined."""
    return tuple(part.strip() for part in view.split(","))


def join_views(names: Iterable[str]) -> str:
    """The name of several views side by side; each counts once."""
    return ",".join(dict.fromkeys(names))


def short_view(view: str) -> str:
    """`view` for a table: several views with a long name by their number, e.g. `8 views`."""
    names = split_view(view)
    return view if len(names) == 1 or len(view) <= SHORT else f"{len(names)} views"
