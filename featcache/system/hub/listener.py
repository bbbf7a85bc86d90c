"""Who hears of a hub's errors and of downloads: the innermost listener, else Python's warnings.

A hub is asked deep inside of calls that have no callback of their own, so the listener is of the process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from featcache.system.progress import OnProgress, Progress

_listeners: list[OnProgress] = []
_told: set[str] = set()


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Send the notes and the progress (stage `download`, in bytes) of hubs to `on_progress`."""
    _listeners.append(on_progress)
    try:
        yield
    finally:
        _listeners.remove(on_progress)
        if not _listeners:
            _told.clear()


def tell(text: str) -> None:
    """One line for the user, once."""
    if text in _told:
        return
    if _listeners:
        _told.add(text)
        _listeners[-1](Progress("note", text=text))
    else:
        warnings.warn(text, stacklevel=2)


def tell_progress(name: str, done: int, total: int) -> None:
    """So many bytes of `name` are on this disk; a total of 0 is not known."""
    if _listeners:
        _listeners[-1](Progress("download", name, done, total))
