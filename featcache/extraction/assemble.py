"""Donors' rows and committed blocks -> the columns of a cache file or of its shards, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from featcache.cache.catalog import view_column
from featcache.cache.sealed_file import Column
from featcache.cache.staging import Staging
from featcache.data.split import Split
from featcache.extraction.partition import Division
from featcache.fingerprint import CacheDocument

ASSEMBLE_ROWS = 8192
BLOCKS_KEPT = 4  # rows come in order; equal texts may lie in an earlier block


def columns(
    split: Split, hashes: np.ndarray, document: CacheDocument, division: Division, staging: Staging
) -> Callable[[slice], list[Column]]:
    """All columns of a cache file for any of its rows; nothing is read before they are written.

    Args:
        hashes: row hashes of the split, uint8 `[N, 32]`.
        division: what is copied and what lies in which block.
        staging: every block of the division, committed.
    """
    gather = _Gather(division, staging)
    storage = document.encoder.storage

    def of_rows(rows: slice) -> list[Column]:
        count = len(range(len(split))[rows])
        views = [
            Column(view_column(name), (count, gather.width(name)), storage, gather.chunks(name, rows))
            for name in document.views
        ]
        return [
            *views,
            _labels(split.labels[rows]),
            Column("row_hash", (count, 32), "uint8", [hashes[rows]]),
            Column("n_tokens", (count,), "int32", gather.chunks("n_tokens", rows)),
            Column("truncated", (count,), "uint8", gather.chunks("truncated", rows)),
        ]

    return of_rows


def _labels(labels: np.ndarray) -> Column:
    starts = range(0, len(labels), ASSEMBLE_ROWS)
    chunks = (labels[start : start + ASSEMBLE_ROWS] for start in starts)
    return Column("labels", labels.shape, labels.dtype.name, chunks)


class _Gather:
    """Rows of the file to be, in order."""

    def __init__(self, division: Division, staging: Staging) -> None:
        self.division = division
        self.ends = np.cumsum([0, *(file.rows for file in division.donors)])
        self.block = lru_cache(maxsize=BLOCKS_KEPT)(staging.read)
        self.widths: dict[str, int] = {}

    def width(self, view: str) -> int:
        if view not in self.widths:  # a block that is read for it may not be kept until the next shard
            donors = self.division.donors
            rows = donors[0].sealed.column(view_column(view)) if donors else self.block(0)[view]
            self.widths[view] = int(rows.shape[1])
        return self.widths[view]

    def chunks(self, name: str, rows: slice) -> Iterator[np.ndarray]:
        origin = self.division.origin[rows]
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
                column = name if name in file.sealed.names else view_column(name)
                yield file.sealed.column(column)[origin[picked] - low], picked
        fresh = np.flatnonzero(origin >= division.donated)
        places = np.searchsorted(division.to_encode, origin[fresh] - division.donated)
        blocks = np.searchsorted(division.starts, places, side="right") - 1
        for number in np.unique(blocks):
            inside = blocks == number
            yield self.block(int(number))[name][places[inside] - division.starts[number]], fresh[inside]
