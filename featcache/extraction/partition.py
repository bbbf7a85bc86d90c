"""What of a split is copied from earlier files, what is encoded, and in which blocks.

The same rows, donors and token budget make the same division, however many workers share it: that is why the
sealed file is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.cache.catalog import CacheFile

BLOCK_ROWS = 8192  # most texts in a block
BLOCK_BATCHES = 8  # token budgets in a block: its last batch, which is seldom full, should not count
BYTES_A_TOKEN = 3.5  # of UTF-8, roughly: a Chinese character has three, an English word piece four to five


@dataclass(frozen=True)
class Division:
    """How the rows of a cache file come about.

    Attributes:
        donors: sealed files that rows are copied from.
        origin: int64 `[N]`, for each row its place among the rows of all donors in order, then of this split.
        to_encode: int64 `[M]`, rows of this split that are encoded, in order; of equal texts the first.
        starts: int64 `[B + 1]`, where each block begins in `to_encode`, and M.
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
    def blocks(self) -> int:
        return len(self.starts) - 1

    def rows(self, number: int) -> np.ndarray:
        """Rows of the split in a block, int64."""
        return self.to_encode[self.starts[number] : self.starts[number + 1]]

    def count(self, blocks: Sequence[int]) -> int:
        """Texts in some blocks."""
        return int(np.diff(self.starts)[list(blocks)].sum())

    def note(self, name: str, batch_tokens: int) -> dict[str, Any]:
        """What the blocks of a file called `name` are blocks of, as JSON; others are useless to it."""
        return {
            "fingerprint": name,
            "batch_tokens": batch_tokens,
            "donors": [file.path.name for file in self.donors],
            "rows": hashlib.sha256(self.to_encode.tobytes()).hexdigest(),
            "starts": hashlib.sha256(self.starts.tobytes()).hexdigest(),
        }


def divide(donors: Sequence[CacheFile], hashes: np.ndarray, costs: np.ndarray, batch_tokens: int) -> Division:
    """The division of a split.

    Args:
        donors: sealed files of the very same encoder that have all views wanted.
        hashes: row hashes, uint8 `[N, 32]`.
        costs: about how many tokens each row has, `[N]`.
        batch_tokens: token budget of a batch.
    """
    stacked = [np.asarray(file.sealed.column("row_hash")) for file in donors]
    first = first_occurrence(np.concatenate([*stacked, hashes]))
    origin = first[len(first) - len(hashes) :]
    donated = sum(file.rows for file in donors)
    to_encode = np.unique(origin[origin >= donated]) - donated
    return Division(donors, origin, to_encode, block_starts(costs[to_encode], BLOCK_BATCHES * batch_tokens))


def token_costs(sizes: np.ndarray, max_length: int | None) -> np.ndarray:
    """About how many tokens texts of so many bytes of UTF-8 have, float64 `[N]`.

    Args:
        max_length: where longer texts are cut; None: they are not.
    """
    tokens = sizes / BYTES_A_TOKEN + 3
    return tokens if max_length is None else np.minimum(tokens, max_length)


def block_starts(costs: np.ndarray, block_cost: float) -> np.ndarray:
    """Where blocks of about equal cost begin, and the number of rows: int64 `[B + 1]`.

    No block costs much more than `block_cost`, but for a single row that does.
    """
    if len(costs) == 0:
        return np.zeros(1, dtype=np.int64)
    total = np.cumsum(costs)
    count = max(-(-len(costs) // BLOCK_ROWS), round(total[-1] / block_cost), 1)
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
    order = np.lexsort(words.T)  # stable: equal rows stay in order, the first one first
    ordered = words[order]
    new = np.ones(len(words), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    first = np.empty(len(words), dtype=np.int64)
    first[order] = order[starts[np.cumsum(new) - 1]]
    return first
