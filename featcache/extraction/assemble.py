"""Donors' rows and committed units -> the columns of a cache file or of its shards, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from featcache.backbone.tokens.unknown_tokens import UnknownTokens
from featcache.cache.catalog import view_column
from featcache.cache.sealed_writer import Column
from featcache.cache.staging import Staging
from featcache.data.split import Split
from featcache.extraction.partition import Partition, first_occurrence
from featcache.fingerprint import CacheDocument

ASSEMBLE_ROWS = 8192
UNITS_KEPT = 4  # rows come in order; equal texts may lie in an earlier unit


def columns(
    split: Split, hashes: np.ndarray, document: CacheDocument, gather: RowGatherer
) -> Callable[[slice], list[Column]]:
    """All columns of a cache file for any of its rows; nothing is read before they are written.

    Args:
        hashes: row hashes of the split, uint8 `[N, 32]`.
        gather: reads what is copied, and what was encoded.
    """
    storage = document.encoder.dtype.storage

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


class RowGatherer:
    """Rows of the file to be, in order.

    Args:
        partition: what is copied and what lies in which unit.
        staging: every unit of the partition, committed.
    """

    def __init__(self, partition: Partition, staging: Staging) -> None:
        self.partition = partition
        self.ends = np.cumsum([0, *(file.rows for file in partition.donors)])
        self.unit = lru_cache(maxsize=UNITS_KEPT)(self._read)
        self.staging = staging
        self.widths: dict[str, int] = {}
        self.unknown: dict[int, UnknownTokens] = {}  # of the units that were read

    def _read(self, number: int) -> dict[str, np.ndarray]:
        unit = self.staging.read(number)
        if "unknown" in unit:  # else the unit was encoded by an earlier version
            self.unknown[number] = UnknownTokens(unit["unknown"], unit["own"])
        return unit

    def unknown_share(self) -> float | None:
        """Unknown tokens of all tokens, once all rows were read; None where that is not known.

        It is known of rows that were encoded now, and of all rows of an earlier file together: not of some of
        them, unless it has no unknown tokens.
        """
        unknown = sum(float(one.unknown.sum()) for one in self.unknown.values())
        tokens = sum(float(one.own.sum()) for one in self.unknown.values())
        for number, file in enumerate(self.partition.donors):
            share, low, origin = file.record.made.unknown_tokens, self.ends[number], self.partition.origin
            rows = np.unique(origin[(origin >= low) & (origin < self.ends[number + 1])]) - low
            if len(rows):
                hashes = np.asarray(file.sealed.column("row_hash"))
                if share is None or (share and len(rows) < len(np.unique(first_occurrence(hashes)))):
                    return None
                copied = float(file.sealed.column("n_tokens")[rows].sum(dtype=np.int64))
                unknown, tokens = unknown + share * copied, tokens + copied
        return unknown / tokens if tokens else None

    def width(self, view: str) -> int:
        if view not in self.widths:  # a unit that is read for it may not be kept until the next shard
            donors = self.partition.donors
            rows = donors[0].sealed.column(view_column(view)) if donors else self.unit(0)[view]
            self.widths[view] = int(rows.shape[1])
        return self.widths[view]

    def chunks(self, name: str, rows: slice) -> Iterator[np.ndarray]:
        origin = self.partition.origin[rows]
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
        """Values and the places they go to, donor by donor and unit by unit."""
        partition = self.partition
        for number, file in enumerate(partition.donors):
            low, high = self.ends[number], self.ends[number + 1]
            picked = np.flatnonzero((origin >= low) & (origin < high))
            if len(picked):
                column = name if name in file.sealed.names else view_column(name)
                yield file.sealed.column(column)[origin[picked] - low], picked
        fresh = np.flatnonzero(origin >= partition.donated)
        places = np.searchsorted(partition.to_encode, origin[fresh] - partition.donated)
        units = np.searchsorted(partition.starts, places, side="right") - 1
        for number in np.unique(units):
            inside = units == number
            yield self.unit(int(number))[name][places[inside] - partition.starts[number]], fresh[inside]
