"""A column of row weights: how much each row counts when a head is trained on it."""

from __future__ import annotations

import numpy as np

from featcache.data.source_column import read_column
from featcache.data.split import Split
from featcache.errors import SourceError
from featcache.settings import DataSettings


def read_row_weights(data: DataSettings, split: Split, column: str) -> np.ndarray:
    """The weights of the rows of `split`, float64 `[N]`, none negative and not all 0.

    They are read beside the texts, by the same readers, and are no part of the features: sealed files do not
    change with them.

    Args:
        data: what `split` was loaded from.
        column: its name in the source.

    Raises:
        SourceError: no such column, or a row whose weight is no finite number from 0 on; names the first.
    """
    values, weights = read_column(data, split.name, column, "--weight-column"), np.empty(len(split))
    for place, row in enumerate(split.row_numbers.tolist()):
        weights[place] = _weight(values[row], row, split.name, column)
    if not weights.any():
        raise SourceError(
            f"all weights of the {split.name} split (column {column!r}) are 0",
            hint="leave --weight-column out, or give some rows a weight above 0",
        )
    return weights


def _weight(value: object, row: int, split: str, column: str) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        if 0 <= number < float("inf"):
            return number
    raise SourceError(
        f"row {row + 1} of {split}: {value!r:.60} in column {column!r} is no weight: a number from 0 on",
        hint="each row needs one; 0 leaves a row out of the training",
    )
