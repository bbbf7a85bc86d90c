"""Cells of a source: texts, and labels, lists of labels or texts that a separator splits into labels.

A label cell is stored as JSON, so that one Arrow column holds values of mixed types. Only this module
interprets such cells; others see a label column as `LabelCells`: which row has which label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featcache.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

LabelValue = str | int | float | bool
_ZERO_OR_ONE = frozenset(("0", "1", "0.0", "1.0", "False", "True"))
_BATCH_ROWS = 10_000


class LabelCells(NamedTuple):
    """The entries of a label column: entry e gives row `rows[e]` the label `items[codes[e]]`."""

    several: bool  # the cells are lists: multi-label; else a row has one entry at most
    rows: NDArray[np.int64]  # [M], ascending, counted from 0
    codes: NDArray[np.int64]  # [M], each label of a row once
    items: list[LabelValue]  # distinct labels as written, in order of appearance; texts are stripped
    unlabelled: NDArray[np.bool_]  # [N], no cell; an empty list is one
    hollow: NDArray[np.bool_]  # [N], a null within a list

    def row_of(self, code: int) -> int:
        """The first row with this label, counted from 1."""
        return int(self.rows[np.argmax(self.codes == code)]) + 1


def text_cell(value: object, row: int, split: str) -> str | None:
    """`value` as a text; None for a null and for a text that UTF-8 cannot hold."""
    if value is None:
        return None
    if not isinstance(value, str):
        kind = type(value).__name__
        raise SourceError(
            f"row {row + 1} of {split}: the text is a {kind}, not a string: {value!r:.60}",
            hint="name the column with the text: --text-column",
        )
    return value if _is_utf8(value) else None


def label_cell(value: object, row: int, split: str) -> str | None:
    """`value` as JSON; None for a null and for a text that UTF-8 cannot hold."""
    if value is None or (isinstance(value, str) and not _is_utf8(value)):
        return None
    try:
        return json.dumps(value, default=_plain)
    except TypeError:
        kind = type(value).__name__
        raise SourceError(
            f"row {row + 1} of {split}: a label cannot be a {kind}: {value!r:.60}",
            hint="a label is a text, a whole number, or a list of them: --label-column names another column",
        ) from None


def read_cells(
    name: str, column: pa.ChunkedArray, *, encoded: bool, separator: str | None = None
) -> LabelCells:
    """The entries of the label column of the split `name`.

    Args:
        column: `[N]` cells: JSON texts if `encoded`, else values or lists of any Arrow type.
        separator: splits a text into labels, blank ones dropped; all cells are lists of labels then.

    Raises:
        SourceError: naming the first row that mixes lists with single labels, nests lists, holds
            something that is no label, or looks multi-hot.
    """
    of_row, cells = distinct_cells(name, column, encoded)

    def row(code: int) -> str:
        return f"row {int(np.argmax(of_row == code)) + 1} of {name}"

    if separator is not None:
        cells = [_parted(cell, separator) for cell in cells]
    several = _are_lists(cells, row)
    if several:
        _check_not_multi_hot(cells, row)
    index: dict[tuple[type, LabelValue], int] = {}  # by type too: to Python 1, 1.0 and True are equal
    flat: list[int] = []
    ends, hollow = [0], []
    for number, cell in enumerate(cells):
        items = [_item(item, partial(row, number)) for item in (cell if several else [cell])]
        labels = [(type(item), item) for item in items if item is not None]
        hollow.append(len(labels) < len(items))
        flat += sorted({index.setdefault(label, len(index)) for label in labels})
        ends.append(len(flat))
    rows, places = _ragged(of_row, np.array(ends))
    blank = np.array([*hollow, not several], bool)[of_row]  # the last entry is for rows without a cell
    return LabelCells(
        several=several,
        rows=rows,
        codes=np.array(flat, np.int64)[places],
        items=[item for _, item in index],
        unlabelled=of_row < 0 if several else blank,
        hollow=blank if several else np.zeros(len(blank), bool),
    )


def distinct_cells(name: str, column: pa.ChunkedArray, encoded: bool) -> tuple[NDArray[np.int64], list[Any]]:
    """Codes int64 [N] (-1: null) into the distinct cells, and these in order of appearance."""
    import pyarrow as pa

    if not encoded and (pa.types.is_nested(column.type) or isinstance(column.type, pa.BaseExtensionType)):
        texts = (label_cell(value, row, name) for row, value in enumerate(_values(column)))
        column, encoded = pa.chunked_array([pa.array(texts, pa.large_string())]), True
    values = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    codes = np.asarray(values.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    raw = values.dictionary.to_pylist()
    return codes, [json.loads(value) for value in raw] if encoded else raw


def _values(column: pa.ChunkedArray) -> Iterator[object]:
    import pyarrow as pa

    batches = pa.table([column], names=["label"]).to_batches(max_chunksize=_BATCH_ROWS)
    return chain.from_iterable(batch.column(0).to_pylist() for batch in batches)


def _parted(cell: object, separator: str) -> object:
    """A cell as a list of labels: a text is split and blank parts dropped, a number is the only label."""
    if isinstance(cell, str):
        return [part for part in cell.split(separator) if part.strip()]
    return cell if isinstance(cell, (list, dict)) else [cell]


def _are_lists(cells: Sequence[object], row: Callable[[int], str]) -> bool:
    """True if all cells are lists, False if none is."""
    first: dict[bool, int] = {}
    for code, cell in enumerate(cells):
        if isinstance(cell, dict):
            raise SourceError(f"the label in {row(code)} is a dict: {cell!r:.60}", hint=_WHAT_A_LABEL_IS)
        first.setdefault(isinstance(cell, list), code)
    if len(first) > 1:
        late, early = max(first.values()), min(first.values())
        kind, other = ("a list", "is not") if late == first[True] else ("no list", "is")
        raise SourceError(
            f"the label in {row(late)} is {kind}, that in {row(early)} {other}",
            hint="multi-label data has a list of labels in every row, [] for none",
        )
    return True in first


def _check_not_multi_hot(cells: Sequence[list[object]], row: Callable[[int], str]) -> None:
    """Raise for lists like [0, 1, 0]: taken as names of labels, they would be wrong without an error."""
    if len({len(cell) for cell in cells}) > 1:
        return
    twice = next((code for code, cell in enumerate(cells) if len(set(map(str, cell))) < len(cell)), None)
    if twice is not None and all(str(item) in _ZERO_OR_ONE for cell in cells for item in cell):
        raise SourceError(
            f"the labels in {row(twice)} look multi-hot: {cells[twice]!r:.60}",
            hint="list the labels that a row has, e.g. [1, 3], instead of a 0 or 1 for every label",
        )


def _item(value: object, row: Callable[[], str]) -> LabelValue | None:
    """A single label, stripped; None for null, a blank text, NaN, or a text that UTF-8 cannot hold."""
    if isinstance(value, str):
        return (value.strip() or None) if _is_utf8(value) else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (int, float)):
        return value
    raise SourceError(
        f"a label in {row()} is a {type(value).__name__}: {value!r:.60}",
        hint=_WHAT_A_LABEL_IS,
    )


def _ragged(
    of_row: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and places of all entries, both int64 [M]: row r has all places of its cell.

    Args:
        of_row: [N], the cell of each row; -1 for none.
        ends: [K + 1], cell k has the places from `ends[k]` to before `ends[k + 1]`.
    """
    lengths = np.append(np.diff(ends), 0)[of_row]
    rows = np.repeat(np.arange(len(of_row)), lengths)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return rows, ends[of_row[rows]] + within


def _plain(value: object) -> object:
    """A NumPy value or a set as JSON can hold it; TypeError for anything else."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    raise TypeError


def _is_utf8(text: str) -> bool:
    """False for a text with a lone surrogate, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_WHAT_A_LABEL_IS = (
    "a label is a text or a whole number, or a flat list of them;"
    " use --label-column to name a column that holds such labels"
)
