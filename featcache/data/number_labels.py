"""Labels that are numbers: every one is finite, or the first row that has none is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.data.arrow_table import SplitTable
from featcache.data.label_cells import distinct_cells
from featcache.data.labels import NUMBER, bad_rows_note, bad_texts
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings

LARGEST = 1e30  # squares of what is larger, and numbers in float32, come near their limits
_ODD = ("nan", "inf", "infinity")  # how a text spells what is no finite number


@dataclass(frozen=True, eq=False)
class NumberedTable:
    """A checked table whose labels are numbers.

    Attributes:
        rows: int64 `[N]`, usable rows of the source, counted from 0.
        numbers: float64 `[N]`, finite, their labels.
        skipped: rows that were left out.
    """

    table: SplitTable
    rows: NDArray[np.int64]
    numbers: NDArray[np.float64]
    skipped: int
    notes: tuple[str, ...]


def check_number_settings(data: DataSettings) -> None:
    """Refuse settings that are about classes.

    Raises:
        UsageError
    """
    of_classes = {
        "--label-names": data.label_names,
        "--label-columns": data.label_columns,
        "--label-separator": data.label_separator,
    }
    if given := [flag for flag, value in of_classes.items() if value is not None]:
        raise UsageError(
            f"{given[0]} is about classes, and with --task regression labels are numbers",
            hint=f"leave {given[0]} away, or --task regression",
        )


def read_numbers(name: str, table: SplitTable, data: DataSettings) -> NumberedTable:
    """The usable rows of the split `name`.

    Raises:
        SourceError: a row is not usable, and such rows may not be left out; names the first one and its
            label.
    """
    if len(table.dataset) == 0:
        raise SourceError(f"the {name} split has no rows", hint="leave it out, or name a file with rows")
    column = table.columns.label
    cells = table.dataset.select_columns([column]).with_format("arrow")[:].column(column)
    codes, distinct = distinct_cells(name, cells, table.encoded)
    numbers = np.array([*map(_number, distinct), math.nan])[codes]
    faults = {"no usable text": bad_texts(table), **_faults(codes, distinct, numbers)}
    good = ~np.logical_or.reduce(list(faults.values()))
    notes = bad_rows_note(name, faults, data)
    if not good.any():
        raise SourceError(
            f"the {name} split has no row with both a text and a number (column {column!r})",
            hint="are these the right columns? --text-column, --label-column",
        )
    if table.class_names:
        named = ", ".join(table.class_names[:3])
        notes += (f"the labels of {name} have names ({named}, ...): their numbers 0, 1, ... are taken",)
    rows = np.flatnonzero(good)
    return NumberedTable(table, rows, numbers[rows] + 0.0, len(good) - len(rows), notes)  # -0.0 becomes 0.0


def check_numbers_differ(train: NumberedTable) -> None:
    """Raise SourceError if all rows of train have the same number."""
    if (train.numbers == train.numbers[0]).all():
        raise SourceError(
            f"all labels of train are the same: {train.numbers[0]:g}",
            hint="a head needs numbers that differ; was the right --label-column taken?",
        )


def _number(cell: object) -> float:
    """The number that a cell is or spells; NaN for anything else, and for numbers that are too large."""
    if isinstance(cell, str):
        cell = float(cell) if NUMBER.fullmatch(cell.strip()) else None
    if isinstance(cell, bool) or not isinstance(cell, (int, float)) or not abs(cell) <= LARGEST:
        return math.nan
    return float(cell)


def _faults(
    codes: NDArray[np.int64], distinct: list[object], numbers: NDArray[np.float64]
) -> Mapping[str, NDArray[np.bool_]]:
    """Which rows have no number, by what is wrong with the first of their kind."""
    of_cell = np.array([*(_kind_of_fault(cell) for cell in distinct), "no label"])
    odd = np.isnan(numbers)
    kinds = np.where(odd, of_cell[codes], "")
    faults = {}
    for kind in dict.fromkeys(kinds[odd].tolist()):
        here = kinds == kind
        code = int(codes[np.argmax(here)])
        shown = "" if kind == "no label" else f"the label {distinct[code]!r:.60}, "
        faults[shown + kind] = here
    return faults


def _kind_of_fault(cell: object) -> str:
    """What is wrong with a cell that is no number."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "no label"
    text = str(cell).strip().lower()
    if isinstance(cell, bool) or not (
        isinstance(cell, (int, float)) or text.lstrip("+-") in _ODD or NUMBER.fullmatch(text)
    ):
        return "which is no number"
    if text.lstrip("+-") == "nan":
        return "which is no number (NaN)"
    return "which is not finite" if text.lstrip("+-") in _ODD else f"which is beyond {LARGEST:g}"
