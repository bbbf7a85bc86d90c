"""How far a text is from the train texts, by its features: the out-of-scope scores.

Both distances are made of the train features as they are stored, some rows at a time, and are higher the less
a text is like the train texts. Which one is better depends on the data: `choose_distance` leaves classes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, Self

import numpy as np

from featcache.heads.closed_form import class_gaussians
from featcache.heads.features import LabelledFeatures, Standard, counts_of, row_slices, standardised
from featcache.heads.lexical.rows import WordRows
from featcache.heads.scorers import TensorReader, Tensors, contiguous
from featcache.system.sharded_array import slices_of

NEIGHBOUR = 10  # the distance is that to the tenth nearest train row
QUERIES = 1024  # rows whose cosines with the stored ones are in memory at once: 32 MB
# What `NearestRows` keeps: 8,192 rows of 768 features; a random share is nearly as good as all (Sun et al.).
STORED_ROWS, STORED_NUMBERS = 8192, 8192 * 768
WIDEST = 2048  # features; above it a matrix for all pairs of features takes too long and too much room
TRIAL_ROWS = 3_000  # train rows, and as many of validation, on which the two distances are compared
TRIALS = 5  # classes that are left out, one after the other


class ScopeDistance(Protocol):
    """A distance from the train rows; `kind` is its name in DISTANCES."""

    kind: ClassVar[str]

    @property
    def width(self) -> int:
        """D, features of one row."""

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` as stored -> float64 `[N]`; higher is farther."""

    def tensors(self) -> dict[str, np.ndarray]:
        """All its numbers, as contiguous arrays for safetensors."""

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """The distance that `tensors` describes; HeadError for tensors that do not fit."""

    @classmethod
    def fit(cls, train: LabelledFeatures, classes: int, seed: int) -> Self:
        """The distance from single-label train rows; at least two of them differ."""


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Squared Mahalanobis distance to the nearest class mean, with one covariance for all classes.

    Lee et al. 2018, arXiv:1807.03888; the covariance is shrunk as the discriminant head's.

    Attributes:
        weight: float32 `[D, D]`; `weight @ x` has unit variance within the classes.
        means: float32 `[C, D]`, `weight @ mean` of each class that train has.
    """

    kind: ClassVar[str] = "mahalanobis"
    weight: np.ndarray
    means: np.ndarray

    @classmethod
    def fit(cls, train: LabelledFeatures, classes: int, seed: int) -> Self:
        from scipy.linalg import cholesky, solve_triangular

        standard = Standard.of(train.x)
        groups = [np.flatnonzero(train.y == one) for one in np.flatnonzero(counts_of(train.y, classes))]
        means, covariance, _ = class_gaussians(train.x, groups, standard)
        covariance[np.diag_indices_from(covariance)] += 1e-6 * (covariance.trace() / len(covariance) + 1e-6)
        root = cholesky(covariance, lower=True)
        whitening = solve_triangular(root, np.diag(1 / standard.scale), lower=True)
        centres = (means * standard.scale + standard.mean) @ whitening.T
        return cls(whitening.astype(np.float32), centres.astype(np.float32))

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    def distances(self, x: np.ndarray) -> np.ndarray:
        found = np.empty(len(x))
        means = self.means.astype(np.float64)
        squares = (means**2).sum(axis=1)
        for rows in row_slices(x):
            white = (np.asarray(x[rows], np.float32) @ self.weight.T).astype(np.float64)
            apart = squares - 2 * white @ means.T
            found[rows] = (white**2).sum(axis=1) + apart.min(axis=1)
        return np.maximum(found, 0)

    def tensors(self) -> dict[str, np.ndarray]:
        return contiguous(weight=self.weight, means=self.means)

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        read = TensorReader(cls.kind, tensors)
        return cls(read("weight", "D D", np.float32), read("means", "C D", np.float32))


@dataclass(frozen=True, eq=False)
class NearestRows:
    """One minus the cosine to the k-th nearest train row, of standardised features.

    Sun et al. 2022, arXiv:2204.06507.

    Attributes:
        rows: float16 `[R, D]`, some train rows, standardised and of length 1.
        mean, scale: float64 `[D]`, of the train features.
    """

    kind: ClassVar[str] = "neighbours"
    rows: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, train: LabelledFeatures, classes: int, seed: int) -> Self:
        standard = Standard.of(train.x)
        width = train.x.shape[1]
        kept = some_rows(len(train.x), min(STORED_ROWS, max(NEIGHBOUR, STORED_NUMBERS // width)), seed)
        rows = np.empty((len(kept), width), np.float16)
        start = 0
        for _, part in standardised(train.x, standard, kept):
            rows[start : start + len(part)] = _unit(part)
            start += len(part)
        return cls(rows, standard.mean, standard.scale)

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    def distances(self, x: np.ndarray) -> np.ndarray:
        found, standard = np.empty(len(x)), Standard(self.mean, self.scale)
        k = min(NEIGHBOUR, len(self.rows))
        for rows in slices_of(len(x), QUERIES):
            cosines = _unit(standard.exactly(x[rows])).astype(np.float32) @ self._stored
            found[rows] = 1 - np.partition(cosines, -k, axis=1)[:, -k].astype(np.float64)
        return found

    @cached_property
    def _stored(self) -> np.ndarray:
        """float32 `[D, R]`."""
        return self.rows.astype(np.float32).T

    def tensors(self) -> dict[str, np.ndarray]:
        return contiguous(rows=self.rows, mean=self.mean, scale=self.scale)

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        read = TensorReader(cls.kind, tensors)
        rows = read("rows", "R D", np.float16)
        return cls(rows, read("mean", "D", np.float64), read("scale", "D", np.float64))


@dataclass(frozen=True, eq=False)
class NoDistance:
    """Of heads that read words alone, and no features: every text is at distance 0, and in scope."""

    kind: ClassVar[str] = "none"
    width: int = 0

    @classmethod
    def fit(cls, train: LabelledFeatures, classes: int, seed: int) -> Self:
        return cls()

    def distances(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x))

    def tensors(self) -> dict[str, np.ndarray]:
        return {}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        return cls()


TRIED = (Mahalanobis, NearestRows)
DISTANCES: dict[str, type[ScopeDistance]] = {one.kind: one for one in (*TRIED, NoDistance)}


def fit_distance(kind: str, train: LabelledFeatures, classes: int, seed: int) -> ScopeDistance:
    """The distance of that kind from train rows `[N, D]` with single labels."""
    return DISTANCES[kind].fit(train, classes, seed)


def choose_distance(
    train: LabelledFeatures, validation: LabelledFeatures, classes: int, seed: int
) -> dict[str, float]:
    """How well each distance tells the rows of a class that it has never seen, best first.

    One class after the other, up to TRIALS, the most frequent first, is left out of the train rows; its
    validation rows must then be farther away than the others. With two classes, each is left out once. Of
    more than WIDEST features only the nearest rows are tried.

    Returns:
        By kind the mean area under the ROC curve; 0.5 is chance, and what both get where validation has rows
        of one class only. At equal areas Mahalanobis comes first, which is smaller.
    """
    near = some_rows(len(train.x), TRIAL_ROWS, seed)
    far = some_rows(len(validation.x), TRIAL_ROWS, seed)
    known = LabelledFeatures(np.asarray(train.x[near]), train.y[near])
    asked = LabelledFeatures(np.asarray(validation.x[far]), validation.y[far])
    held, seen = counts_of(asked.y, classes), counts_of(known.y, classes)
    usable = np.flatnonzero((held > 0) & (held < len(asked.y)) & (seen > 0) & (seen < len(known.y)))
    from sklearn.metrics import roc_auc_score

    kinds = [one.kind for one in TRIED if one is not Mahalanobis or known.x.shape[1] <= WIDEST]
    areas: dict[str, list[float]] = {kind: [] for kind in kinds}
    for out in usable[np.argsort(-held[usable], kind="stable")][:TRIALS]:
        kept = known.y != out
        rest = LabelledFeatures(known.x[kept], known.y[kept])
        for kind, found in areas.items():
            distance = fit_distance(kind, rest, classes, seed).distances(asked.x)
            found.append(float(roc_auc_score(asked.y == out, distance)))
    means = {kind: float(np.mean(found)) if found else 0.5 for kind, found in areas.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def distance_of(kind: str, tensors: Mapping[str, np.ndarray]) -> ScopeDistance:
    """The distance of that kind that `ScopeDistance.tensors` has written."""
    return DISTANCES[kind].from_tensors(tensors)


def dense_part(x: np.ndarray) -> np.ndarray | None:
    """The features `[N, D]` of a backbone among what a head reads; None for words alone."""
    return x.dense if isinstance(x, WordRows) else x


def distances_of(distance: ScopeDistance, x: np.ndarray) -> np.ndarray:
    """Distances float64 `[N]` of rows as a head reads them, with or without words."""
    dense = dense_part(x)
    return distance.distances(x if dense is None else dense)


def some_rows(count: int, most: int, seed: int) -> np.ndarray:
    """All row numbers of `count`, or `most` of them at random: int64, ascending."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))
