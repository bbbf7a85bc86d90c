"""Names of views, and of several views that a head reads side by side: `last/mean,-3/mean,lexical`."""

from __future__ import annotations

from collections.abc import Iterable

from featcache.errors import UsageError
from featcache.translation.language import noted

LEXICAL = "lexical"  # the view of the n-grams of the texts, for which no backbone runs
SHORT = 24  # characters of a name that is shown whole


def split_view(view: str) -> tuple[str, ...]:
    """The views in a name, in their order: one, or several that are joined."""
    return tuple(part.strip() for part in view.split(","))


def cached_views(view: str) -> tuple[str, ...]:
    """Those of the views in a name that are features of a backbone."""
    return tuple(name for name in split_view(view) if name != LEXICAL)


def require_cached(view: str, what: str) -> None:
    """Refuse the view `lexical` where features of a backbone are needed.

    Raises:
        UsageError: it is among the views; `what` needs others.
    """
    if LEXICAL in split_view(view):
        raise UsageError(
            f"{what} reads cached features, and lexical is in no cache", hint="leave lexical out"
        )


def split_name(view: str) -> tuple[str, str]:
    """The name of the backbone and its own view: `A`, `last/mean` of `A:last/mean`; the main one is ""."""
    name, colon, own = view.rpartition(":")
    return name.strip(), own.strip() if colon else view


def named_view(name: str, view: str) -> str:
    """`A:last/mean`; the view as it is for the main backbone."""
    return f"{name}:{view}" if name else view


def join_views(names: Iterable[str]) -> str:
    """The name of several views side by side; each counts once."""
    return ",".join(dict.fromkeys(names))


def short_view(view: str) -> str:
    """`view` for a table: several views with a long name by their number, e.g. `8 views`."""
    if view == LEXICAL:
        return noted("no backbone")
    names = split_view(view)
    return view if len(names) == 1 or len(view) <= SHORT else f"{len(names)} views"
