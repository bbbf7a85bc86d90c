"""Which texts are near each other: cosines of centred features, computed in tiles of bounded memory.

Features of a frozen Transformer all have much the same direction (Ethayarajh 2019, arXiv:1909.00512): the
cosine of two unrelated reviews may be 0.9. After the mean is subtracted (Mu & Viswanath 2018,
arXiv:1702.01417), unrelated texts are near 0 and texts that differ in a few characters above 0.95, with any
backbone, so that one threshold serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from featcache.system.progress import OnProgress, Progress, ignore

TILE = 2048  # rows of a tile of cosines: 17 MB in float32
THRESHOLD = 0.95  # cosine from which on two texts are nearly equal
NEIGHBOURS = 10

ReadFeatures = Callable[[np.ndarray], np.ndarray]


class Neighbourhood:
    """What is near each of M distinct texts, as far as they were compared.

    Attributes:
        group: int64 `[M]`, the lowest number among the texts that are connected to it by nearly equal pairs.
        nearest: int64 `[splits, M]`: for each split its nearest other text; -1 if there is none.
        cosine: float32 `[splits, M]`, with those; -1 if there is none.
        best: float32 `[M, k]`, the highest cosines with texts of the first split; -inf for missing ones.
    """

    def __init__(self, splits: int, total: int, neighbours: int) -> None:
        self.group = np.arange(total)
        self.nearest = np.full((splits, total), -1)
        self.cosine = np.full((splits, total), -1, np.float32)
        self.best = np.full((total, neighbours), -np.inf, np.float32)

    @cached_property
    def distance(self) -> np.ndarray:
        """float32 `[M]`: 1 minus the mean of `best`; NaN if there are none."""
        there = np.isfinite(self.best)
        count = there.sum(axis=1)
        mean = np.where(there, self.best, 0).sum(axis=1) / np.maximum(count, 1)
        return np.where(count > 0, np.maximum(1 - mean, 0), np.nan).astype(np.float32)

    def join_groups(self, cosines: np.ndarray, rows: np.ndarray, other: np.ndarray, threshold: float) -> None:
        """Join the groups of texts that are nearly equal."""
        one, two = np.nonzero(cosines >= threshold)
        if not len(one):
            return
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        known, edges = np.unique(
            np.concatenate([self.group[rows[one]], self.group[other[two]]]), return_inverse=True
        )
        first, second = edges[: len(one)], edges[len(one) :]
        graph = csr_array((np.ones(len(one), np.int8), (first, second)), shape=(len(known), len(known)))
        component = connected_components(graph, directed=False)[1]
        lowest = np.full(component.max() + 1, len(self.group))
        np.minimum.at(lowest, component, known)
        renamed = np.arange(len(self.group))
        renamed[known] = lowest[component]
        self.group = renamed[self.group]

    def update(self, cosines: np.ndarray, rows: np.ndarray, other: np.ndarray, split: int) -> None:
        """Take for the texts `rows` what is nearer among `other`, texts of `split`."""
        where = cosines.argmax(axis=1)
        value = cosines[np.arange(len(rows)), where]
        unknown = self.nearest[split, rows] < 0
        nearer = np.isfinite(value) & (unknown | (value > self.cosine[split, rows]))
        self.cosine[split, rows[nearer]] = np.clip(value[nearer], -1, 1)
        self.nearest[split, rows[nearer]] = other[where[nearer]]
        if split == 0:
            k = self.best.shape[1]
            both = np.concatenate([self.best[rows], cosines], axis=1)
            self.best[rows] = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]


def neighbourhood(
    read: ReadFeatures,
    sizes: Sequence[int],
    *,
    threshold: float = THRESHOLD,
    neighbours: int = NEIGHBOURS,
    tile: int = TILE,
    on_progress: OnProgress = ignore,
) -> Neighbourhood:
    """Compare all texts with all others.

    Time is about `M^2 * D` multiply-adds; memory a few tiles and `(2 splits + neighbours) * M` numbers.

    Args:
        read: text numbers int `[B]` -> their features `[B, D]`, finite.
        sizes: how many texts each split has; the numbers of a split follow those of the split before.
        threshold: cosine from which on two texts are nearly equal.
        neighbours: k.
        on_progress: receives the stage `comparing texts` in cosines.
    """
    total, ends = sum(sizes), np.cumsum([0, *sizes])
    tiles = [
        (split, rows)
        for split in range(len(sizes))
        for rows in _tiles(np.arange(ends[split], ends[split + 1]), tile)
    ]
    centre = _mean(read, np.arange(sizes[0] or total), tile)
    near = Neighbourhood(len(sizes), total, neighbours)
    done, cosines_in_all = 0, (total * total + sum(len(rows) ** 2 for _, rows in tiles)) // 2
    for place, (split, rows) in enumerate(tiles):
        left = _unit(read(rows), centre)
        for other_split, other in tiles[place:]:
            same = other[0] == rows[0]
            cosines = left @ (left if same else _unit(read(other), centre)).T
            if same:
                np.fill_diagonal(cosines, -np.inf)
            near.join_groups(cosines, rows, other, threshold)
            near.update(cosines, rows, other, other_split)
            if not same:
                near.update(cosines.T, other, rows, split)
            done += len(rows) * len(other)
            on_progress(Progress("comparing texts", done=done, total=cosines_in_all))
    return near


def _tiles(numbers: np.ndarray, tile: int) -> Iterator[np.ndarray]:
    return (numbers[first : first + tile] for first in range(0, len(numbers), tile))


def _mean(read: ReadFeatures, numbers: np.ndarray, tile: int) -> np.ndarray:
    """The mean of the features of some texts, float64 `[D]`."""
    sums = (read(part).sum(axis=0, dtype=np.float64) for part in _tiles(numbers, tile))
    return np.asarray(sum(sums) / len(numbers))


def _unit(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Centred rows of length 1, float32 `[B, D]`; a row at the centre stays 0 and is near no other."""
    moved = x.astype(np.float64) - centre
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / np.where(length > 1e-12, length, 1), np.float32)
