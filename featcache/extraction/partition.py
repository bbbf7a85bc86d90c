"""Which rows of a split are copied from earlier files, which are encoded, and in which commit units.

The same rows, donors and token budget give the same partition, however many workers share it: therefore the
sealed file is the same, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.backbone.tokens.encoded import BYTES_A_TOKEN
from featcache.cache.catalog import CacheFile

UNIT_ROWS = 8192  # most texts in a commit unit
UNIT_BATCHES = 8  # token budgets in a commit unit: its last batch, which is seldom full, should not count


@dataclass(frozen=True)
class PartitionPlan:
    """What identifies the commit units of a file: units of another plan cannot be used.

    Attributes:
        fingerprint: of the cache document.
        batch_tokens: token budget of a batch.
        donors: names of the donors' files, in order.
        rows, starts: SHA-256 of `Partition.to_encode` and `Partition.starts`.
    """

    fingerprint: str
    batch_tokens: int
    donors: tuple[str, ...]
    rows: str
    starts: str


@dataclass(frozen=True)
class Partition:
    """How the rows of a cache file are made.

    Attributes:
        donors: sealed files that rows are copied from.
        origin: int64 `[N]`, for each row its place among the rows of all donors in order, then of this split.
        to_encode: int64 `[M]`, rows of this split that are encoded, in order; of equal texts the first.
        starts: int64 `[U + 1]`, where each commit unit begins in `to_encode`, and M.
    """

    donors: Sequence[CacheFile]
    origin: np.ndarray
    to_encode: np.ndarray
    starts: np.ndarray

    @property
    def donated(self) -> int:
        """Rows of all donors."""
        return sum(file.rows for file in self.donors)

    @property
    def units(self) -> int:
        return len(self.starts) - 1

    def rows(self, number: int) -> np.ndarray:
        """Rows of the split in a commit unit, int64."""
        return self.to_encode[self.starts[number] : self.starts[number + 1]]

    def count(self, units: Sequence[int]) -> int:
        """Texts in some commit units."""
        return int(np.diff(self.starts)[list(units)].sum())

    def plan(self, fingerprint: str, batch_tokens: int) -> PartitionPlan:
        """What identifies the commit units."""
        return PartitionPlan(
            fingerprint=fingerprint,
            batch_tokens=batch_tokens,
            donors=tuple(file.path.name for file in self.donors),
            rows=hashlib.sha256(self.to_encode.tobytes()).hexdigest(),
            starts=hashlib.sha256(self.starts.tobytes()).hexdigest(),
        )


def partition_rows(
    donors: Sequence[CacheFile], hashes: np.ndarray, costs: np.ndarray, batch_tokens: int
) -> Partition:
    """The partition of a split.

    Args:
        donors: sealed files of the very same encoder that have all views wanted.
        hashes: row hashes, uint8 `[N, 32]`.
        costs: about how many tokens each row has, `[N]`.
        batch_tokens: token budget of a batch.
    """
    stacked = [np.asarray(file.sealed.column("row_hash")) for file in donors]
    first = first_occurrence(np.concatenate([*stacked, hashes]))
    origin = first[len(first) - len(hashes) :]
    donated = len(first) - len(hashes)
    to_encode = np.unique(origin[origin >= donated]) - donated
    return Partition(donors, origin, to_encode, unit_starts(costs[to_encode], UNIT_BATCHES * batch_tokens))


def token_costs(sizes: np.ndarray, max_length: int | None) -> np.ndarray:
    """About how many tokens texts of so many bytes of UTF-8 have, float64 `[N]`.

    Args:
        max_length: where longer texts are truncated; None: they are not.
    """
    tokens = sizes / BYTES_A_TOKEN + 3
    return tokens if max_length is None else np.minimum(tokens, max_length)


def unit_starts(costs: np.ndarray, unit_cost: float) -> np.ndarray:
    """Where commit units of about equal cost begin, and the number of rows: int64 `[U + 1]`.

    No unit costs much more than `unit_cost`, but for a single row that does.
    """
    if len(costs) == 0:
        return np.zeros(1, dtype=np.int64)
    total = np.cumsum(costs)
    count = max(-(-len(costs) // UNIT_ROWS), round(total[-1] / unit_cost), 1)
    inner = np.searchsorted(total, total[-1] * np.arange(1, count) / count) + 1
    return np.unique(np.concatenate([[0], inner, [len(costs)]])).astype(np.int64)


def first_occurrence(hashes: np.ndarray) -> np.ndarray:
    """For each row, the number of the first row with the same hash.

    Args:
        hashes: uint8 `[N, 32]`.

    Returns:
        int64 `[N]`; equal to `arange(N)` where all rows differ.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)  # [N, 4]
    order = np.lexsort(words.T)  # stable: of equal rows the first one stays first
    ordered = words[order]
    new = np.ones(len(words), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    first = np.empty(len(words), dtype=np.int64)
    first[order] = order[starts[np.cumsum(new) - 1]]
    return first
