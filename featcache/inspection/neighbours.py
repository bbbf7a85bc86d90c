"""Which texts lie near each other: cosines of centred features, block by block in bounded memory.

Features of a frozen Transformer all point much the same way (Ethayarajh 2019, arXiv:1909.00512): of two
unrelated reviews the cosine may be 0.9. With the mean taken off first (Mu & Viswanath 2018,
arXiv:1702.01417) unrelated texts are near 0 and texts that differ in a few characters above 0.95, with any
backbone, so that one threshold serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 2048  # rows of one block of cosines: 17 MB in float32
THRESHOLD = 0.95  # from which on two texts count as nearly equal


@dataclass(frozen=True)
class Neighbourhood:
    """What is near each of M distinct texts.

    Attributes:
        group: int64 `[M]`, the lowest number among all texts that it is nearly equal to, or that those are
            nearly equal to, and so on.
        nearest: int64 `[parts, M]`: for each part the text of that part that is nearest, itself apart;
            -1 where there is none.
        cosine: float32 `[parts, M]`, of those; -1 where there is none.
        distance: float32 `[M]`: one less the mean cosine with the k nearest texts of the first part; of
            fewer where there are fewer, NaN where there are none.
    """

    group: np.ndarray
    nearest: np.ndarray
    cosine: np.ndarray
    distance: np.ndarray


Rows = Callable[[np.ndarray], np.ndarray]


def neighbourhood(
    rows: Rows,
    sizes: Sequence[int],
    *,
    threshold: float = THRESHOLD,
    neighbours: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbourhood:
    """Compare all texts with all others.

    Time is about `M^2 * D` multiply-adds; memory a few blocks and `(2 parts + neighbours) * M` numbers.

    Args:
        rows: text numbers int `[B]` -> their features `[B, D]`, finite.
        sizes: how many texts each part has; the numbers of a part follow those of the part before.
        threshold: cosine from which on two texts are nearly equal.
        neighbours: k.
        progress: called with cosines done and in all.
    """
    total, ends = sum(sizes), np.cumsum([0, *sizes])
    parts = [(part, block) for part in range(len(sizes)) for block in _blocks(ends[part], ends[part + 1])]
    centre = _mean(rows, np.arange(sizes[0]) if sizes[0] else np.arange(total))
    found = _Found(len(sizes), total, neighbours)
    done = 0
    for place, (part, block) in enumerate(parts):
        left = _unit(rows(block), centre)
        for other_part, other in parts[place:]:
            same = other[0] == block[0]
            cosines = left @ (left if same else _unit(rows(other), centre)).T
            if same:
                np.fill_diagonal(cosines, -np.inf)
            found.pairs(cosines, block, other, threshold)
            found.see(cosines, block, other, other_part)
            if not same:
                found.see(cosines.T, other, block, part)
            done += len(block) * len(other)
            if progress:
                progress(done, (total * total + sum(len(block) ** 2 for _, block in parts)) // 2)
    return Neighbourhood(found.group, found.nearest, found.cosine, found.distance())


class _Found:
    """What is known so far."""

    def __init__(self, parts: int, total: int, neighbours: int) -> None:
        self.group = np.arange(total)
        self.nearest = np.full((parts, total), -1)
        self.cosine = np.full((parts, total), -1, np.float32)
        self.best = np.full((total, neighbours), -np.inf, np.float32)

    def pairs(self, cosines: np.ndarray, block: np.ndarray, other: np.ndarray, threshold: float) -> None:
        """Put the groups of nearly equal texts together."""
        one, two = np.nonzero(cosines >= threshold)
        if not len(one):
            return
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        known, edges = np.unique(
            np.concatenate([self.group[block[one]], self.group[other[two]]]), return_inverse=True
        )
        first, second = edges[: len(one)], edges[len(one) :]
        graph = csr_array((np.ones(len(one), np.int8), (first, second)), shape=(len(known), len(known)))
        component = connected_components(graph, directed=False)[1]
        lowest = np.full(component.max() + 1, len(self.group))
        np.minimum.at(lowest, component, known)
        renamed = np.arange(len(self.group))
        renamed[known] = lowest[component]
        self.group = renamed[self.group]

    def see(self, cosines: np.ndarray, block: np.ndarray, other: np.ndarray, part: int) -> None:
        """Note for the texts of `block` what `other`, of `part`, holds near them."""
        where = cosines.argmax(axis=1)
        value = cosines[np.arange(len(block)), where]
        unknown = self.nearest[part, block] < 0
        nearer = np.isfinite(value) & (unknown | (value > self.cosine[part, block]))
        self.cosine[part, block[nearer]] = np.clip(value[nearer], -1, 1)
        self.nearest[part, block[nearer]] = other[where[nearer]]
        if part == 0:
            k = self.best.shape[1]
            both = np.concatenate([self.best[block], cosines], axis=1)
            self.best[block] = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]

    def distance(self) -> np.ndarray:
        """See `Neighbourhood.distance`."""
        there = np.isfinite(self.best)
        count = there.sum(axis=1)
        mean = np.where(there, self.best, 0).sum(axis=1) / np.maximum(count, 1)
        return np.where(count > 0, np.maximum(1 - mean, 0), np.nan).astype(np.float32)


def _blocks(start: int, end: int) -> Iterator[np.ndarray]:
    return (np.arange(first, min(first + BLOCK, end)) for first in range(start, end, BLOCK))


def _mean(rows: Rows, numbers: np.ndarray) -> np.ndarray:
    """float64 `[D]`, of some texts."""
    parts = (
        rows(numbers[first : first + BLOCK]).sum(axis=0, dtype=np.float64)
        for first in range(0, len(numbers), BLOCK)
    )
    return np.asarray(sum(parts) / len(numbers))


def _unit(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Centred rows of length 1, float32 `[B, D]`; a row at the centre stays 0 and is near nothing."""
    moved = x.astype(np.float64) - centre
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / np.where(length > 1e-12, length, 1), np.float32)
