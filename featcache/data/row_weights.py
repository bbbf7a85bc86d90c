"""A column of row weights: how much each row counts when a head is trained on it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from featcache.data.arrow_table import open_tables, quiet_datasets
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
    # Read as labels are: these may be texts or numbers in every format.
    asked = replace(data, label_column=column, label_columns=None, label_separator=None, label_names=None)
    try:
        with quiet_datasets():
            table = open_tables(asked)[0][split.name]()
    except SourceError as error:
        if "--label-column" not in (error.hint or ""):
            raise
        raise SourceError(error.what, hint="name the column of the weights: --weight-column") from None
    cells = table.dataset.select_columns([table.columns.label])[table.columns.label]
    weights = np.empty(len(split))
    for place, row in enumerate(split.row_numbers.tolist()):
        cell = cells[row]
        value = json.loads(cell) if table.encoded and cell is not None else cell
        weights[place] = _weight(value, row, split.name, column)
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
