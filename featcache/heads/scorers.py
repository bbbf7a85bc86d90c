"""Maps from features to class logits: a linear layer, one hidden layer, stored neighbours.

A scorer takes features as they are stored (float16 or float32, memory-mapped or not): the standardisation of
its solver is folded into its weights or kept beside its rows. It is plain numpy, so that a head loads without
torch and without scikit-learn. `tensors` and `from_tensors` are its form on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from featcache.backbone.token_rows import TokenRows
from featcache.errors import HeadError
from featcache.system.sharded_array import slices_of

Tensors = Mapping[str, np.ndarray]

METRICS = ("cosine", "euclidean")  # files hold the position here: append only
QUERIES = STORED = 2048  # rows of one matrix of distances; bounds memory to 150 MB at 768 features


class Scorer(Protocol):
    """What a head needs of a scorer.

    Attributes:
        kind: its name in SCORERS and in the head's file.
        width: D, features of one row.
        classes: C, logits of one row.
        parameters: how many numbers were learnt or are kept.
    """

    kind: ClassVar[str]

    @property
    def width(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def parameters(self) -> int: ...

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float32 `[N, C]`; HeadError for another width."""

    def tensors(self) -> dict[str, np.ndarray]:
        """All its numbers, as contiguous arrays for safetensors."""

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        """The scorer that `tensors` describes; other names in the mapping are ignored.

        Raises:
            HeadError: a tensor is missing, has another dtype or shape, or holds NaN or infinite values.
        """


class _Layers:
    """Layers of float32 weights, and their form on disk."""

    kind: ClassVar[str]
    shapes: ClassVar[dict[str, str]]  # of each tensor, see `TensorReader`

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors().values())

    def tensors(self) -> dict[str, np.ndarray]:
        return contiguous(**{name: getattr(self, name) for name in self.shapes})

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        read = TensorReader(cls.kind, tensors)
        return cls(**{name: read(name, shape, np.float32) for name, shape in cls.shapes.items()})


@dataclass(frozen=True, eq=False)
class Linear(_Layers):
    """`x W^T + b`.

    Attributes:
        weight: float32 `[C, D]`.
        bias: float32 `[C]`.
    """

    kind: ClassVar[str] = "linear"
    shapes: ClassVar[dict[str, str]] = {"weight": "C D", "bias": "C"}
    weight: np.ndarray
    bias: np.ndarray

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    @property
    def classes(self) -> int:
        return len(self.bias)

    def logits(self, x: np.ndarray) -> np.ndarray:
        _check_width(self, x)
        found = np.empty((len(x), self.classes), np.float32)
        for rows in slices_of(len(x), 65536):
            found[rows] = np.asarray(x[rows], np.float32) @ self.weight.T + self.bias
        return found


@dataclass(frozen=True, eq=False)
class Mlp(_Layers):
    """`relu(x W1^T + b1) W2^T + b2`. ReLU, as in scikit-learn's MLPClassifier, is exact in any runtime.

    Attributes:
        w1: float32 `[M, D]`, b1: float32 `[M]`, with the standardisation folded in.
        w2: float32 `[C, M]`, b2: float32 `[C]`.
    """

    kind: ClassVar[str] = "mlp"
    shapes: ClassVar[dict[str, str]] = {"w1": "M D", "b1": "M", "w2": "C M", "b2": "C"}
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    @property
    def width(self) -> int:
        return int(self.w1.shape[1])

    @property
    def hidden(self) -> int:
        """M, units of the hidden layer."""
        return len(self.b1)

    @property
    def classes(self) -> int:
        return len(self.b2)

    def logits(self, x: np.ndarray) -> np.ndarray:
        _check_width(self, x)
        found = np.empty((len(x), self.classes), np.float32)
        for rows in slices_of(len(x), 8192):
            units = np.asarray(x[rows], np.float32) @ self.w1.T
            units += self.b1
            np.maximum(units, 0, out=units)
            found[rows] = units @ self.w2.T + self.b2
        return found


@dataclass(frozen=True, eq=False)
class Attentive(_Layers):
    """A linear layer on vectors that learned queries pool out of token states, one of each of L layers.

    Attributes:
        queries: float32 `[L, M, H]`, centers: float32 `[L, H]`; see `featcache.backbone.attentive.Attention`.
        weight: float32 `[C, D]` with D = L H; bias: float32 `[C]`.
    """

    kind: ClassVar[str] = "attentive"
    shapes: ClassVar[dict[str, str]] = {
        "queries": "L M H", "centers": "L H", "weight": "C D", "bias": "C",
    }  # fmt: skip
    queries: np.ndarray
    centers: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def __post_init__(self) -> None:
        if self.centers.size != self.width:
            raise HeadError(
                f"the attentive head pools {self.centers.size} numbers and reads {self.width}",
                hint="train that head again",
            )

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    @property
    def classes(self) -> int:
        return len(self.bias)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Pooled vectors, or the `TokenRows` that they are pooled of."""
        return Linear(self.weight, self.bias).logits(self.pooled(x))

    def pooled(self, x: np.ndarray) -> np.ndarray:
        """`[N, D]` of `TokenRows`; other features as they are."""
        return x.pooled(self.queries, self.centers) if isinstance(x, TokenRows) else x


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Votes of the k nearest of the stored rows, found exactly.

    Distances are taken between standardised features, `(x - mean) / scale`. Products are summed in float64
    and compared as float32, so that equal rows have equal distances wherever they are stored; of rows with
    equal distances the one stored first is nearer, of classes with equal votes the first one wins.
    scikit-learn's `KNeighborsClassifier` does not promise that, and does not read mapped float16 rows.

    The logits are the logarithms of smoothed shares, with one vote more that is split evenly over the
    outcomes. For a single label `log((votes + 1/C) / (k + 1))`, whose softmax is the smoothed share; for
    several labels the logit of `(votes + 1/2) / (k + 1)`, whose sigmoid is.

    Attributes:
        features: float16 or float32 `[N, D]`, as stored; may be memory-mapped.
        labels: int64 `[N]`, or uint8 multi-hot `[N, C]`.
        classes: C.
        neighbours: k, from 1 to N.
        mean, scale: float64 `[D]`.
        metric: `cosine` (1 - cosine of the angle; a row of zeros is at 1 from all) or `euclidean`.
    """

    kind: ClassVar[str] = "neighbours"
    features: np.ndarray
    labels: np.ndarray
    classes: int
    neighbours: int
    mean: np.ndarray
    scale: np.ndarray
    metric: str = METRICS[0]

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise HeadError(f"unknown metric {self.metric!r}", hint=f"there are: {', '.join(METRICS)}")
        if not 1 <= self.neighbours <= len(self.features):
            raise HeadError(
                f"{self.neighbours} neighbours of {len(self.features)} rows",
                hint=f"ask for 1 to {len(self.features)}",
            )

    @property
    def width(self) -> int:
        return int(self.features.shape[1])

    @property
    def parameters(self) -> int:
        """How many numbers it keeps; none of them is learnt."""
        return int(self.features.size)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float32 `[N, C]`.

        Raises:
            HeadError: another width, NaN or infinite features.
        """
        _check_width(self, x)
        found = np.empty((len(x), self.classes), np.float32)
        for rows in slices_of(len(x), QUERIES):
            found[rows] = self._smooth(self._votes(self.nearest(x[rows])))
        return found

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """The k nearest stored rows of each of some rows `[Q, D]`, in no order: int64 `[Q, k]`.

        A distance and its row are one uint64, distance first (the bits of floats that are not negative sort
        as the floats do): the k smallest are the k nearest, ties included.
        """
        if not np.isfinite(x).all():
            raise HeadError(
                "features to be classified are NaN or infinite",
                hint="extract them again with --storage float32",
            )
        queries, squares = self._prepare(x)
        floor = 1e-12 * squares[:, None]  # smaller distances are rounding errors: all equal
        best = np.empty((len(x), 0), np.uint64)
        for rows in slices_of(len(self.features), STORED):
            stored, stored_squares = self._prepare(self.features[rows])
            distances = queries @ stored.T
            distances *= -2
            distances += squares[:, None]
            distances += stored_squares
            np.maximum(distances, floor, out=distances)
            keys = distances.astype(np.float32).view(np.uint32).astype(np.uint64)
            keys <<= np.uint64(32)
            keys |= np.arange(rows.start, rows.stop, dtype=np.uint64)
            best = np.concatenate([best, keys], axis=1)
            if best.shape[1] > self.neighbours:
                best = np.partition(best, self.neighbours - 1, axis=1)[:, : self.neighbours]
        return (best & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def _prepare(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 rows, and their squared length in `a^2 + b^2 - 2ab`: 1 for cosine."""
        rows = (np.asarray(x, np.float64) - self.mean) / self.scale
        squares = np.einsum("nd,nd->n", rows, rows)
        if self.metric == "euclidean":
            return rows, squares
        lengths = np.sqrt(squares)
        rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
        return rows, np.ones(len(rows))

    def _votes(self, nearest: np.ndarray) -> np.ndarray:
        """How many of the rows `[Q, k]` have each label: int64 `[Q, C]`."""
        labels = self.labels[nearest]
        if self.labels.ndim == 2:
            return np.asarray(labels.sum(axis=1, dtype=np.int64))
        places = labels + self.classes * np.arange(len(labels))[:, None]
        return np.bincount(places.ravel(), minlength=len(labels) * self.classes).reshape(len(labels), -1)

    def _smooth(self, votes: np.ndarray) -> np.ndarray:
        if self.labels.ndim == 2:
            return np.asarray(np.log((votes + 0.5) / (self.neighbours - votes + 0.5)))
        return np.asarray(np.log((votes + 1 / self.classes) / (self.neighbours + 1)))

    def tensors(self) -> dict[str, np.ndarray]:
        return contiguous(
            features=self.features,
            labels=self.labels,
            mean=self.mean,
            scale=self.scale,
            classes=np.array([self.classes], np.int64),
            neighbours=np.array([self.neighbours], np.int64),
            metric=np.array([METRICS.index(self.metric)], np.int64),
        )

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        read = TensorReader(cls.kind, tensors)
        classes, neighbours, metric = (
            int(read(name, "1", np.int64)[0]) for name in ("classes", "neighbours", "metric")
        )
        features = read("features", "N D", np.float16, np.float32)
        mean, scale = read("mean", "D", np.float64), read("scale", "D", np.float64)
        several = np.ndim(tensors.get("labels", 0)) == 2
        labels = read("labels", "N C", np.uint8) if several else read("labels", "N", np.int64)
        if several and classes != labels.shape[1]:
            raise HeadError(
                f"the neighbours head has labels {list(labels.shape)} for {classes} classes",
                hint="train that head again",
            )
        if labels.min() < 0 or labels.max() > (1 if several else classes - 1):
            raise HeadError(
                f"the neighbours head has labels that none of its {classes} classes has",
                hint="train that head again",
            )
        if not (scale > 0).all():
            raise HeadError(
                "the neighbours head has a scale that is not above 0", hint="train that head again"
            )
        if not 0 <= metric < len(METRICS):
            raise HeadError(
                f"the neighbours head has a metric {metric} that this version does not know",
                hint="train that head again",
            )
        return cls(features, labels, classes, neighbours, mean=mean, scale=scale, metric=METRICS[metric])


# Of features of a backbone. Files of word heads hold the position here: append only.
SCORERS: dict[str, type[Scorer]] = {scorer.kind: scorer for scorer in (Linear, Mlp, Neighbours, Attentive)}


class TensorReader:
    """Reads the tensors of a scorer from a file, and checks that their sizes fit each other."""

    def __init__(self, kind: str, tensors: Tensors) -> None:
        self.kind, self.tensors = kind, tensors
        self.sizes: dict[str, int] = {"1": 1}  # by letter, from the first tensor that has it

    def __call__(self, name: str, shape: str, *dtypes: type) -> np.ndarray:
        """The tensor `name`; each letter of `shape`, e.g. `C D`, is one size above 0 in all tensors."""
        if name not in self.tensors:
            raise HeadError(
                f"the {self.kind} head has no {name}; it has: {', '.join(sorted(self.tensors))}",
                hint="train that head again",
            )
        part, letters = self.tensors[name], shape.split()
        if part.dtype not in dtypes:
            wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise HeadError(
                f"the {self.kind} head's {name} is {part.dtype}, not {wanted}", hint="train that head again"
            )
        fits = part.ndim == len(letters) and part.size > 0
        if not fits or any(
            self.sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, part.shape, strict=True)
        ):
            known = {letter: size for letter, size in self.sizes.items() if letter != "1"}
            raise HeadError(
                f"the {self.kind} head's {name} has shape {list(part.shape)}, not [{', '.join(letters)}]"
                f" with {known or 'sizes above 0'}",
                hint="train that head again",
            )
        if not all(np.isfinite(part[rows]).all() for rows in slices_of(len(part), 65536)):
            raise HeadError(
                f"the {self.kind} head's {name} holds NaN or infinite values", hint="train that head again"
            )
        return part


def _check_width(scorer: Scorer, x: np.ndarray) -> None:
    if x.ndim != 2 or x.shape[1] != scorer.width:
        raise HeadError(
            f"this head wants features [N, {scorer.width}], got {list(x.shape)}",
            hint="use features of the view and model that it was trained on",
        )


def contiguous(**parts: np.ndarray) -> dict[str, np.ndarray]:
    """Contiguous arrays, copied only where needed; a memory map stays one."""
    return {name: np.ascontiguousarray(part) for name, part in parts.items()}
