"""Features of rows with their labels: checked, standardised, and read some rows at a time.

Features may be memory-mapped float16 of any length. Nothing here, or in a solver that reads them by these
functions, holds more than `NUMBERS_AT_ONCE` of them in a wider dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from featcache.errors import HeadError
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.system.sharded_array import slices_of

NEVER = 1e4  # a logit that nothing outweighs, for labels that no train row has (negative) or that all have
NUMBERS_AT_ONCE = 1 << 22  # 32 MB in float64
IN_MEMORY = 1 << 29  # bytes of standardised float32 features that are kept; more are made when they are read


class LabelledFeatures(NamedTuple):
    """Features of some rows, and the labels of the same rows.

    Attributes:
        x: `[N, D]` as stored: float16 or float32, memory-mapped or not.
        y: int `[N]`, uint8 multi-hot `[N, C]`, or float64 `[N]` of numbers.
    """

    x: np.ndarray
    y: np.ndarray

    @property
    def weight(self) -> np.ndarray | None:
        """How much each row counts in training, float64 `[N]`, not negative; None: all alike."""
        return None

    def some(self, rows: np.ndarray) -> LabelledFeatures:
        """The rows of these numbers, in memory."""
        return LabelledFeatures(np.asarray(self.x[rows]), self.y[rows])

    def of(self, x: np.ndarray) -> LabelledFeatures:
        """Other features of the same rows."""
        return LabelledFeatures(x, self.y)

    def labelled(self, y: np.ndarray) -> LabelledFeatures:
        """Other labels of the same rows."""
        return LabelledFeatures(self.x, y)


class WeightedFeatures(LabelledFeatures):
    """Features, labels and weights of the same rows; as a tuple the first two."""

    def __new__(cls, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Self:
        made = super().__new__(cls, x, y)
        made._weight = weight  # type: ignore[attr-defined]
        return made

    @property
    def weight(self) -> np.ndarray:
        return self._weight  # type: ignore[attr-defined,no-any-return]

    def some(self, rows: np.ndarray) -> LabelledFeatures:
        return WeightedFeatures(np.asarray(self.x[rows]), self.y[rows], self.weight[rows])

    def of(self, x: np.ndarray) -> LabelledFeatures:
        return WeightedFeatures(x, self.y, self.weight)

    def labelled(self, y: np.ndarray) -> LabelledFeatures:
        return WeightedFeatures(self.x, y, self.weight)


@dataclass(frozen=True)
class Standard:
    """Population mean and deviation of each feature, float64 `[D]`; a constant feature has scale 1."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, group: ProcessGroup = ALONE) -> Standard:
        """The standard of features `[N, D]`.

        Every worker of `group` adds up its share of the rows; all return the same.
        """
        own = group.own_rows(x)
        mean, squares = np.zeros((2, x.shape[1]))
        for rows in row_slices(own):
            mean += own[rows].sum(axis=0, dtype=np.float64)
        group.sum_(mean)
        mean /= len(x)
        for rows in row_slices(own):
            squares += ((own[rows].astype(np.float64) - mean) ** 2).sum(axis=0)
        group.sum_(squares)
        scale = np.sqrt(squares / len(x))
        return cls(mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 `[N, D]`, standardised."""
        return self.exactly(np.asarray(x, np.float32)).astype(np.float32)

    def exactly(self, x: np.ndarray) -> np.ndarray:
        """float64 `[N, D]`, standardised."""
        found = x.astype(np.float64)
        found -= self.mean
        found /= self.scale
        return found

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights for standardised features as float32 weights `[C, D]`, `[C]` for features as they are."""
        folded = weight.astype(np.float64) / self.scale
        return folded.astype(np.float32), (bias - folded @ self.mean).astype(np.float32)


def check_splits(
    train: LabelledFeatures, validation: LabelledFeatures | None, classes: int, group: ProcessGroup = ALONE
) -> None:
    """Refuse rows that no head can be trained on or chosen by; see `check_rows`.

    Raises:
        HeadError: also for train rows with nothing to learn: one class, or the same features in every row.
    """
    check_rows(*train, classes, group=group)
    if validation is not None:
        check_rows(*validation, classes, split="validation", group=group)
    x, y = train
    if y.ndim == 1 and (y == y[0]).all():
        one = "number" if task_of(y) == REGRESSION else "class"
        raise HeadError(
            f"the train labels hold a single {one}; there is nothing to learn",
            hint="is the label column the right one? at least two labels are needed: --label-column names it",
        )
    if y.ndim == 2 and fixed_logits(y, classes).all():
        raise HeadError(
            "every label is in all train rows or in none; there is nothing to learn",
            hint="a label to learn is on some rows and not on others",
        )
    if all((x[rows] == x[0]).all() for rows in row_slices(x)):
        raise HeadError(
            "all train rows have the same features; there is nothing to learn",
            hint="are all texts alike? --text-column names the column",
        )


def check_rows(
    x: np.ndarray, y: np.ndarray, classes: int, split: str = "train", group: ProcessGroup = ALONE
) -> None:
    """Refuse what no solver can use.

    Args:
        x: features `[N, D]`.
        y: int `[N]` below `classes`; uint8 or bool multi-hot `[N, classes]`; finite numbers `[N]`, of which
            `classes` is 0.
        split: named in the message.
        group: workers that read a share of the features each.

    Raises:
        HeadError: shapes that do not fit, no rows, labels out of range, NaN or infinite features.
    """
    if x.ndim != 2 or not x.size or len(y) != len(x):
        raise HeadError(
            f"{split} features {list(x.shape)} and labels {list(y.shape)}: rows [N, D] are needed",
            hint="x has a row for each label",
        )
    if task_of(y) == REGRESSION and not classes:
        fine = y.ndim == 1 and bool(np.isfinite(y).all())
    elif y.ndim == 1:
        fine = y.dtype.kind in "iu" and y.min() >= 0 and y.max() < classes
    else:
        fine = y.shape == (len(x), classes) and y.dtype in (np.uint8, np.bool_) and bool(y.max() <= 1)
    if not fine:
        raise HeadError(
            f"the {split} labels ({y.dtype} {list(y.shape)}) are not of {classes} classes",
            hint="labels are numbers from 0 to the number of classes less 1",
        )
    own = group.own_rows(x)
    odd = [~np.isfinite(own[rows]).all(axis=1) for rows in row_slices(own)]
    refuse_odd_rows(np.concatenate([np.zeros(0, bool), *odd]), len(x), f"the {split} features", group)


def refuse_odd_rows(odd: np.ndarray, count: int, what: str, group: ProcessGroup = ALONE) -> None:
    """Raise `HeadError` where a row is NaN or infinite: bool `[share of count]` of this worker's rows."""
    bad = np.flatnonzero(group.gather(odd.view(np.uint8), count))
    if len(bad):
        raise HeadError(
            f"{len(bad)} rows of {what} are NaN or infinite, the first is row {bad[0] + 1}",
            hint="extract again with --dtype float32",
        )


def fixed_logits(y: np.ndarray, classes: int) -> np.ndarray:
    """float64 `[C]`: 0 for what can be learnt, -NEVER for a label no train row has.

    NEVER for a label that all train rows have, if rows can have several.
    """
    counts = counts_of(y, classes)
    always = (counts == len(y)) & (y.ndim == 2)
    return np.where(counts == 0, -NEVER, np.where(always, NEVER, 0.0))


def counts_of(y: np.ndarray, classes: int) -> np.ndarray:
    """How many rows have each label: int64 `[C]`."""
    if y.ndim == 1:
        return np.bincount(y, minlength=classes)
    return np.asarray(y.sum(axis=0, dtype=np.int64))


def rarest_labels(y: np.ndarray) -> np.ndarray:
    """What rows are stratified by, int `[N]`: the class; of multi-hot rows the rarest label, C for none."""
    if y.ndim == 1:
        return y
    counts = counts_of(y, y.shape[1])
    rarest = np.where(y == 1, counts, len(y) + 1).argmin(axis=1)
    return np.asarray(np.where(y.any(axis=1), rarest, y.shape[1]))


def row_slices(x: np.ndarray, rows: int | None = None) -> Iterator[slice]:
    """Slices of `x` `[N, D]`, or of so many of its rows, that hold `NUMBERS_AT_ONCE` numbers at most."""
    return slices_of(len(x) if rows is None else rows, max(1, NUMBERS_AT_ONCE // x.shape[1]))


def standardised(
    x: np.ndarray, standard: Standard, rows: np.ndarray | None = None
) -> Iterator[tuple[slice | np.ndarray, np.ndarray]]:
    """Some row numbers and the standardised features of these rows, float64 `[B, D]`, at a time.

    Args:
        rows: which rows, int `[M]`; all by default.
    """
    for part in row_slices(x, None if rows is None else len(rows)):
        numbers = part if rows is None else rows[part]
        yield numbers, standard.exactly(x[numbers])


class Standardised:
    """Features standardised when they are read, slice by slice, for solvers that take any `[N, D]` rows.

    Args:
        x: features as stored, float16 or float32, memory-mapped or not.
    """

    def __init__(self, x: np.ndarray, standard: Standard) -> None:
        self.x, self.standard, self.shape = x, standard, x.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """float32 `[B, D]`."""
        return self.standard(self.x[rows])


class WatchedRows:
    """Features that are read slice by slice, pass after pass; it says how often they were.

    Args:
        x: an array, or anything with a shape that gives rows for a slice.
        on_pass: called at the beginning of each pass with its number.
    """

    def __init__(self, x: Any, on_pass: Callable[[int], None]) -> None:
        self.x, self.on_pass, self.shape, self.passes = x, on_pass, x.shape, 0
        self.device = getattr(x, "device", None)  # of its slices, if these are tensors

    def __getitem__(self, rows: slice) -> Any:
        if not rows.start:
            self.passes += 1
            self.on_pass(self.passes)
        return self.x[rows]


def is_kept(numbers: int) -> bool:
    """Whether so many standardised float32 numbers are kept in memory."""
    return numbers * 4 <= IN_MEMORY


def standardised_rows(x: np.ndarray, standard: Standard) -> np.ndarray | Standardised:
    """`x` standardised to float32: kept if it is small enough, else standardised at each reading."""
    if not is_kept(x.size):
        return Standardised(x, standard)
    kept = np.empty(x.shape, np.float32)
    for rows in row_slices(x):
        kept[rows] = standard(x[rows])
    return kept
