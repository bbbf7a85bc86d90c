"""Every error a user can cause, one base class; each says what was wrong and what to do."""

from __future__ import annotations


class FeatcacheError(Exception):
    """Base of all errors featcache raises on purpose.

    Args:
        what: one sentence that names the thing that is wrong and what was tried.
        hint: what to do about it; shown on its own line.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what if hint is None else f"{what}\n{hint}")
        self.what = what
        self.hint = hint


class UsageError(FeatcacheError):
    """A flag, a setting or a call that cannot be meant as it stands."""

    exit_code = 2


class SourceError(FeatcacheError):
    """Texts or labels that cannot be read or used."""

    exit_code = 3


class BackboneError(FeatcacheError):
    """A model or tokenizer that cannot be loaded or cannot do what was asked."""

    exit_code = 4


class BadRow(BackboneError):
    """A text that cannot be encoded; `row` is its place among those that were handed over."""

    def __init__(self, what: str, row: int, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.row = row


class CacheError(FeatcacheError):
    """A cache file that cannot be written, opened or trusted."""

    exit_code = 5


class LockHeld(CacheError):
    """Another process is writing the file; the message says which."""


class CacheMiss(CacheError):
    """The features asked for are not in the cache; the message names the field that differs."""


class CorruptCache(CacheError):
    """A cache file whose bytes are not the bytes that were written."""


class HeadError(FeatcacheError):
    """A head or a run that cannot be trained, loaded or used with these features."""

    exit_code = 6


def restored(kind: str, what: str, hint: str | None) -> FeatcacheError:
    """An error that another process raised, of the class of that name."""
    if kind == "BadRow":  # whose row is known to that process alone
        kind = "BackboneError"
    known = [FeatcacheError]
    for one in known:
        known += one.__subclasses__()
    found = next((one for one in known if one.__name__ == kind), FeatcacheError)
    return found(what, hint=hint)
