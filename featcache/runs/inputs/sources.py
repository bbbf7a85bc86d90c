"""How the features or token states of a split were made, for the record of a run."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.cache.catalog import CacheFile
from featcache.runs.inputs.joined_files import reference_of
from featcache.runs.record import CacheReference


@dataclass(frozen=True)
class SplitSource:
    """Where the inputs of a head come from.

    Attributes:
        truncated: texts that were longer than the longest length.
        unknown_tokens: share of the tokens that the vocabulary does not have; None where it is not known.
        seconds: that making them took.
        commit: of the backbone on the hub; None for a local folder.
        cache: the file of features; None of token states.
    """

    truncated: int
    unknown_tokens: float | None
    seconds: float
    commit: str | None
    cache: CacheReference | None = None

    @classmethod
    def of(cls, file: CacheFile) -> SplitSource:
        made = file.record.made
        return cls(file.truncated, made.unknown_tokens, made.seconds or 0.0, made.commit, reference_of(file))
