"""The errors that featcache raises on purpose; each names what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatcacheError(Exception):
    """Base class of all errors that featcache raises on purpose.

    Args:
        what: one sentence with the thing that is wrong and what was tried.
        hint: what to do about it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what if hint is None else f"{what}\n{hint}")
        self.what = what
        self.hint = hint


class UsageError(FeatcacheError):
    """A flag, a setting or an argument is not valid."""

    exit_code = 2


class NoInnerLayers(UsageError):
    """A view of an inner layer of a model that gives its last layer alone."""


class SourceError(FeatcacheError):
    """Texts or labels cannot be read or used."""

    exit_code = 3


class BackboneError(FeatcacheError):
    """A model or tokenizer cannot be loaded, or cannot do what was asked."""

    exit_code = 4


class ModelUnreachable(BackboneError):
    """No copy of a hub's model is on this disk, and the hub gives no answer."""


class BadRow(BackboneError):
    """A text cannot be encoded; `row` is its number among the texts that were passed, from 0."""

    def __init__(self, what: str, row: int, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.row = row


class CacheError(FeatcacheError):
    """A cache file cannot be written, opened or trusted."""

    exit_code = 5


class DiskError(CacheError):
    """The file system refuses: the disk is full, read-only or not allowed, or a name is too long."""


class LockHeld(CacheError):
    """Another process is writing the file; the message names it."""


class CacheMiss(CacheError):
    """The features asked for are not in the cache; the message names the field that differs."""


class CorruptCache(CacheError):
    """The bytes of a cache file are not those that were written."""


class HeadError(FeatcacheError):
    """A head or a run cannot be trained, loaded or used with these features."""

    exit_code = 6


def restored(kind: str, what: str, hint: str | None) -> FeatcacheError:
    """An error that another process raised: of the class `kind`, or FeatcacheError if there is none."""
    if kind == "BadRow":  # only the other process knows the row
        kind = "BackboneError"
    known = [FeatcacheError]
    for one in known:
        known += one.__subclasses__()
    found = next((one for one in known if one.__name__ == kind), FeatcacheError)
    return found(what, hint=hint)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody who typed `name` most likely meant; None if there is none like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
