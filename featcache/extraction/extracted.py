"""What an extraction gives for each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featcache.cache.catalog import CacheFile
from featcache.data.split import count_labels
from featcache.fingerprint import REGRESSION, task_of


@dataclass(frozen=True)
class Extracted:
    """The result of `extract_splits` for one split.

    Attributes:
        cached: the features were there; no forward pass was run.
        encoded: texts that went through the backbone.
        reused: rows taken from earlier cache files or equal rows.
        truncated: texts longer than `max_length` tokens.
        tokens: tokens of all rows, encoded now or earlier.
        unknown_tokens: share of the tokens that the model's vocabulary does not have; None where it is not
            known, as of files of earlier versions.
        notes: what is good to know about the data.
        labels: rows by label name; empty for numbers.
        numbers: the smallest and the largest label where these are numbers.
        loading_seconds: of `seconds`, those in which libraries were imported and the model was loaded: of the
            first split that needed it. 0 where other processes loaded it, each while others worked.
    """

    split: str
    rows: int
    seconds: float
    cached: bool
    encoded: int
    reused: int
    truncated: int
    tokens: int
    fingerprint: str
    path: Path
    views: tuple[str, ...]
    max_length: int
    notes: tuple[str, ...] = ()
    unknown_tokens: float | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    numbers: tuple[float, float] | None = None
    loading_seconds: float = 0.0

    @classmethod
    def of(
        cls,
        file: CacheFile,
        split: str,
        seconds: float,
        *,
        encoded: int = 0,
        cached: bool = False,
        notes: tuple[str, ...] = (),
        loading_seconds: float = 0.0,
    ) -> Extracted:
        """The result for a split whose features are in `file`."""
        labels = np.asarray(file.sealed.column("labels"))
        return cls(
            split=split,
            rows=file.rows,
            seconds=seconds,
            cached=cached,
            encoded=encoded,
            reused=file.rows - encoded,
            truncated=file.truncated,
            tokens=file.tokens,
            fingerprint=file.fingerprint,
            path=file.path,
            views=file.views,
            max_length=file.max_length,
            labels=count_labels(labels, file.document.labels.names),
            numbers=(float(labels.min()), float(labels.max())) if task_of(labels) == REGRESSION else None,
            notes=notes,
            unknown_tokens=file.record.made.unknown_tokens,
            loading_seconds=loading_seconds,
        )
