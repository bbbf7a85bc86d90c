"""From a table to its usable rows, and from label values as written to names and indexes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from featcache.config import DataSettings
from featcache.errors import SourceError
from featcache.readers import INTEGER
from featcache.tables import Table

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Labelled(NamedTuple):
    """A checked table: its usable rows and their labels, each label an index into `values`."""

    table: Table
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    values: list[int | str]
    names: list[str]  # of `values`
    declared: tuple[str, ...] | None
    notes: tuple[str, ...]
    skipped: int


def read_labels(name: str, table: Table, data: DataSettings) -> Labelled:
    """The usable rows of `table`, or the error that names the first one that is not."""
    if len(table.dataset) == 0:
        raise SourceError(f"the {name} split has no rows")
    codes, values, declared = _label_values(name, table)
    if not np.any(codes >= 0):
        raise SourceError(
            f"the {name} split has no labels (column {table.columns.label!r})",
            hint="hidden test labels cannot be scored: use a split that has labels",
        )
    no_text = bad_texts(table)
    bad = no_text | (codes < 0)
    notes = bad_rows_note(name, bad, no_text, data)
    rows = np.flatnonzero(~bad)
    codes = codes[rows]
    if len(rows) == 0:
        raise SourceError(f"the {name} split has no row with both text and label")
    declared = data.label_names or declared
    names = _value_names(name, rows, codes, values, declared)
    return Labelled(table, rows, codes, values, names, declared, notes, int(bad.sum()))


def label_order(read: Mapping[str, Labelled], data: DataSettings) -> tuple[str, ...]:
    """The label names of a source: as declared, else integers by value, else strings sorted."""
    values: dict[int | str, str] = {}
    for split, one in read.items():
        present = set(one.codes.tolist())
        used = {one.values[code]: one.names[code] for code in sorted(present)}
        values |= used
        if split == "train" and len(used) < 2:
            raise SourceError(
                f"all labels of train are the same: {next(iter(used.values()))!r}",
                hint="a head needs at least two classes; was the right --label-column taken?",
            )
        for code in sorted(present):
            if data.label_names and one.names[code] not in data.label_names:
                row = _row_number(one.rows, one.codes, code)
                raise SourceError(
                    f"label {one.names[code]!r} in row {row} of {split} is not in --label-names",
                    hint=f"they are: {', '.join(data.label_names)}",
                )
    declared = next((one.declared for one in read.values() if one.declared is not None), None)
    if declared is not None:
        rest = sorted(set(values.values()) - set(declared))
        return (*declared, *rest)
    if all(isinstance(value, int) for value in values):
        return tuple(str(value) for value in sorted(cast("dict[int, str]", values)))
    return tuple(sorted(values.values()))


def check_against_train(read: Mapping[str, Labelled]) -> None:
    """Raise for a label that a split has and train never had."""
    train = read["train"]
    known = {train.names[code] for code in np.unique(train.codes)}
    for split, one in read.items():
        for code in np.unique(one.codes):
            if one.names[code] not in known:
                row = _row_number(one.rows, one.codes, code)
                raise SourceError(
                    f"label {one.names[code]!r} in row {row} of {split} never occurs in train",
                    hint=f"labels of train: {', '.join(sorted(known))}",
                )


def label_indexes(one: Labelled, order: Sequence[str]) -> NDArray[np.int64]:
    """The labels of `one` as indexes into `order`."""
    position = {name: index for index, name in enumerate(order)}
    # A value whose rows were all left out has no place in the order, and no row asks for it.
    lookup = np.array([position.get(name, -1) for name in one.names], np.int64)
    return lookup[one.codes]


def bad_texts(table: Table) -> NDArray[np.bool_]:
    """bool [N]: True where the text is null or blank, or the second text is null."""
    import pyarrow.compute as pc

    text, _, pair = table.columns
    columns = [text] if pair is None else [text, pair]
    source = table.dataset.select_columns(columns).with_format("arrow")
    bad = np.zeros(len(source), bool)
    for start in range(0, len(source), 10_000):
        chunk = source[start : start + 10_000]
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk.column(text))), 0)
        wrong = np.asarray(blank.fill_null(True).to_numpy(), bool)
        if pair is not None:
            # An empty second text is a text: some rows of a pair task have none.
            wrong = wrong | np.asarray(chunk.column(pair).is_null().to_numpy(), bool)
        bad[start : start + len(wrong)] = wrong
    return bad


def bad_rows_note(
    name: str, bad: NDArray[np.bool_], no_text: NDArray[np.bool_], data: DataSettings
) -> tuple[str, ...]:
    """The note about rows left out, none if all are usable; or the error when they may not be."""
    rows = np.flatnonzero(bad) + 1
    if len(rows) == 0:
        return ()
    if not data.skip_bad_rows:
        missing = "usable text" if no_text[rows[0] - 1] else "label"
        more = "" if len(rows) == 1 else f", the first of {len(rows)} rows without text or label"
        raise SourceError(
            f"row {rows[0]} of {name} has no {missing}{more}",
            hint="leave such rows out with --skip-bad-rows",
        )
    shown = ", ".join(str(row) for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
    plural = "" if len(rows) == 1 else "s"
    return (f"left out {len(rows)} row{plural} without text or label: row{plural} {shown} of {name}",)


def _row_number(rows: NDArray[np.int64], codes: NDArray[np.int64], code: int) -> int:
    """The first row of the source with this label, counted from 1."""
    return int(rows[np.argmax(codes == code)]) + 1


def _label_values(
    name: str, table: Table
) -> tuple[NDArray[np.int64], list[int | str], tuple[str, ...] | None]:
    """Codes int64 [N] (-1: no label) into the distinct labels, and the names they bring along."""
    raw_codes, raw = _distinct(name, table)
    declared = table.class_names
    if all(isinstance(value, bool) for value in raw if value is not None):
        declared = declared or ("False", "True")
    typed = _typed_labels(name, raw, lambda code: int(np.argmax(raw_codes == code)) + 1)
    # -1 stands for a hidden label in a hub dataset; beside other numbers it is a label like any.
    if declared is not None or {value for value in typed if value is not None} == {-1}:
        typed = [None if value == -1 else value for value in typed]
    values = list(dict.fromkeys(value for value in typed if value is not None))
    index = {value: code for code, value in enumerate(values)}
    lookup = np.array([-1 if value is None else index[value] for value in typed] + [-1], np.int64)
    return lookup[raw_codes], values, declared  # a raw code of -1 finds the last entry


def _distinct(name: str, table: Table) -> tuple[NDArray[np.int64], list[object]]:
    """Codes int64 [N] (-1: null) into the distinct raw values of the label column."""
    import pyarrow as pa

    column = table.columns.label
    values = table.dataset.select_columns([column]).with_format("arrow")[:].column(column)
    if pa.types.is_nested(values.type):
        raise _multi_label(name, 1)
    encoded = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    raw = encoded.dictionary.to_pylist()
    return codes, [json.loads(value) for value in raw] if table.encoded else raw


def _typed_labels(name: str, raw: Sequence[object], row_of: Callable[[int], int]) -> list[int | str | None]:
    """Raw labels as integers if all of them can be, else as strings; None where there is none."""
    for code, value in enumerate(raw):
        if isinstance(value, (list, dict)):
            raise _multi_label(name, row_of(code))
        if not isinstance(value, (str, int, float)) and value is not None:
            kind = type(value).__name__
            raise SourceError(f"the label in row {row_of(code)} of {name} is a {kind}: {value!r}")
    cleaned = [_no_label(value) for value in raw]
    present = [value for value in cleaned if value is not None]
    if all(_is_number(value) for value in present):
        for code, value in enumerate(cleaned):
            if value is not None and _integer(value) is None:
                raise SourceError(
                    f"label {value} in row {row_of(code)} of {name} is not a whole number:"
                    " that is regression, not classification",
                    hint="use --label-column to name a column of classes",
                )
        return [None if value is None else _integer(value) for value in cleaned]
    return [None if value is None else str(value) for value in cleaned]


def _no_label(value: object) -> str | int | float | None:
    """The label without outer blanks; None for a blank one and for NaN."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and math.isnan(value):
        return None
    return cast("int | float | None", value)


def _is_number(value: str | int | float) -> bool:
    # A longer row of digits is a name: as a number it would lose its last digits.
    return not isinstance(value, str) or (len(value) < 19 and _NUMBER.fullmatch(value) is not None)


def _integer(value: str | int | float) -> int | None:
    """The whole number that `value` is or spells, else None."""
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return int(value)
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return int(number)


def _multi_label(name: str, row: int) -> SourceError:
    return SourceError(
        f"the label in row {row} of {name} is a list: multi-label is not supported yet",
        hint="use --label-column to name a column with one label a row",
    )


def _value_names(
    split: str,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    values: Sequence[int | str],
    declared: Sequence[str] | None,
) -> list[str]:
    """What each of `values` is called: label i by its declared name, else as it is written."""
    names = []
    for code, value in enumerate(values):
        if not isinstance(value, int) or declared is None:
            names.append(str(value))
        elif 0 <= value < len(declared):
            names.append(declared[value])
        elif np.any(codes == code):
            row = _row_number(rows, codes, code)
            raise SourceError(
                f"label {value} in row {row} of {split} has no name: there are {len(declared)}"
                f" label names, for labels 0 to {len(declared) - 1}",
                hint="give --label-names one name for each label",
            )
        else:  # only in rows that were left out
            names.append(str(value))
    return names
