"""Donors' rows and committed blocks -> the columns of a cache file, in order, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from featcache import store
from featcache.division import Division
from featcache.sealed import Column
from featcache.sources import Split
from featcache.staging import Staging

ASSEMBLE_ROWS = 8192


def columns(
    split: Split, hashes: np.ndarray, document: Mapping[str, Any], division: Division, staging: Staging
) -> list[Column]:
    """All columns of a cache file; nothing is read before they are written.

    Args:
        hashes: row hashes of the split, uint8 `[N, 32]`.
        document: the cache document, see `fingerprint.cache_document`.
        division: what is copied and what lies in which block.
        staging: every block of the division, committed.
    """
    count = len(split)
    gather = _Gather(division, staging)
    storage = str(document["encoder"]["dtype"]["storage"])
    views = [
        Column(store.view_column(name), (count, gather.width(name)), storage, gather.chunks(name))
        for name in document["views"]
    ]
    return [
        *views,
        _labels(split.labels),
        Column("row_hash", (count, 32), "uint8", [hashes]),
        Column("n_tokens", (count,), "int32", gather.chunks("n_tokens")),
        Column("truncated", (count,), "uint8", gather.chunks("truncated")),
    ]


def _labels(labels: np.ndarray) -> Column:
    starts = range(0, len(labels), ASSEMBLE_ROWS)
    chunks = (labels[start : start + ASSEMBLE_ROWS] for start in starts)
    return Column("labels", labels.shape, labels.dtype.name, chunks)


class _Gather:
    """Rows of the file to be, in order."""

    def __init__(self, division: Division, staging: Staging) -> None:
        self.division = division
        self.ends = np.cumsum([0, *(file.rows for file in division.donors)])
        self.block = lru_cache(maxsize=16)(staging.read)

    def width(self, view: str) -> int:
        if self.division.donors:
            return int(self.division.donors[0].sealed.column(store.view_column(view)).shape[1])
        return int(self.block(0)[view].shape[1])

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        origin = self.division.origin
        for start in range(0, len(origin), ASSEMBLE_ROWS):
            yield self._rows(name, origin[start : start + ASSEMBLE_ROWS])

    def _rows(self, name: str, origin: np.ndarray) -> np.ndarray:
        rows: np.ndarray | None = None
        for part, picked in self._parts(name, origin):
            if rows is None:
                rows = np.empty((len(origin), *part.shape[1:]), part.dtype)
            rows[picked] = part
        assert rows is not None
        return rows

    def _parts(self, name: str, origin: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Values and the places they go to, donor by donor and block by block."""
        division = self.division
        for number, file in enumerate(division.donors):
            low, high = self.ends[number], self.ends[number + 1]
            picked = np.flatnonzero((origin >= low) & (origin < high))
            if len(picked):
                column = name if name in file.sealed.names else store.view_column(name)
                yield file.sealed.column(column)[origin[picked] - low], picked
        fresh = np.flatnonzero(origin >= division.donated)
        places = np.searchsorted(division.to_encode, origin[fresh] - division.donated)
        blocks = np.searchsorted(division.starts, places, side="right") - 1
        for number in np.unique(blocks):
            inside = blocks == number
            yield self.block(int(number))[name][places[inside] - division.starts[number]], fresh[inside]
