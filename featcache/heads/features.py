"""Train rows as solvers take them: checked, and standardised some at a time.

Features may be memory-mapped float16 of any length. Nothing here, or in a solver that goes through here,
holds more than one block of them in a wider dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featcache.errors import HeadError
from featcache.heads.distributed import ALONE, Group
from featcache.heads.fit import Standard
from featcache.system.sharded_array import part_of

NEVER = 1e4  # a logit that nothing outweighs, for labels that train rows never (or always) have
BLOCK = 1 << 22  # numbers in one block: 32 MB in float64
IN_MEMORY = 1 << 29  # bytes of standardised float32 features that are kept; above, they are made when read


def check_rows(
    x: np.ndarray, y: np.ndarray, classes: int, split: str = "train", group: Group = ALONE
) -> None:
    """Refuse what no solver can use.

    Args:
        x: features `[N, D]`.
        y: int `[N]` below `classes`, or uint8 or bool multi-hot `[N, classes]`.
        split: named in the message.
        group: whose workers read a part of the features each.

    Raises:
        HeadError: shapes that do not fit, no rows, labels out of range, NaN or infinite features.
    """
    if x.ndim != 2 or not x.size or len(y) != len(x):
        raise HeadError(
            f"{split} features {list(x.shape)} and labels {list(y.shape)}: rows [N, D] are needed"
        )
    if y.ndim == 1:
        fine = y.dtype.kind in "iu" and y.min() >= 0 and y.max() < classes
    else:
        fine = y.shape == (len(x), classes) and y.dtype in (np.uint8, np.bool_) and bool(y.max() <= 1)
    if not fine:
        raise HeadError(f"the {split} labels ({y.dtype} {list(y.shape)}) are not of {classes} classes")
    mine = part_of(x, group.share(len(x)))
    odd = [~np.isfinite(block).all(axis=1) for block in blocks(mine)]
    bad = np.flatnonzero(group.gather(np.concatenate([np.zeros(0, bool), *odd]).view(np.uint8), len(x)))
    if len(bad):
        raise HeadError(
            f"{len(bad)} rows of the {split} features are NaN or infinite, the first is row {bad[0] + 1}",
            hint="extract again with --dtype float32",
        )


def check_learnable(x: np.ndarray, y: np.ndarray, classes: int) -> None:
    """Refuse train rows with nothing to learn: one class, or features that are the same in every row."""
    if y.ndim == 1 and (y == y[0]).all():
        raise HeadError("the train labels hold a single class; there is nothing to learn")
    if y.ndim == 2 and fixed_logits(y, classes).all():
        raise HeadError("every label is in all train rows or in none; there is nothing to learn")
    if all((block == x[0]).all() for block in blocks(x)):
        raise HeadError("all train rows have the same features; there is nothing to learn")


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


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """`x` as views of some rows each."""
    step = max(1, BLOCK // x.shape[1])
    return (x[first : first + step] for first in range(0, len(x), step))


def standard_of(x: np.ndarray, group: Group = ALONE) -> Standard:
    """What `Standard.of` says of the whole of `x`, one block at a time: population mean and deviation.

    Each worker of `group` adds up its share of the rows; all return the same.
    """
    mine = part_of(x, group.share(len(x)))
    mean, squares = np.zeros((2, x.shape[1]))
    for block in blocks(mine):
        mean += block.sum(axis=0, dtype=np.float64)
    group.sum_(mean)
    mean /= len(x)
    for block in blocks(mine):
        squares += ((block.astype(np.float64) - mean) ** 2).sum(axis=0)
    group.sum_(squares)
    scale = np.sqrt(squares / len(x))
    return Standard(mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0))


def standardised(
    x: np.ndarray, standard: Standard, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers int64 `[B]` and their standardised features float64 `[B, D]`, block by block.

    Args:
        rows: which rows, int `[M]`; all by default.
    """
    step = max(1, BLOCK // x.shape[1])
    for first in range(0, len(x) if rows is None else len(rows), step):
        if rows is None:
            numbers, block = np.arange(first, min(first + step, len(x))), x[first : first + step]
        else:
            numbers = rows[first : first + step]
            block = x[numbers]
        yield numbers, (block.astype(np.float64) - standard.mean) / standard.scale


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


def standardised_rows(x: np.ndarray, standard: Standard) -> np.ndarray | Standardised:
    """`x` standardised to float32: kept where that is small enough, else made anew at each reading."""
    if x.size * 4 > IN_MEMORY:
        return Standardised(x, standard)
    kept = np.empty(x.shape, np.float32)
    first = 0
    for block in blocks(x):
        kept[first : first + len(block)] = standard(block)
        first += len(block)
    return kept
