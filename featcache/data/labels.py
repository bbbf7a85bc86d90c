"""Usable rows of a table, and label values as written turned into names and indexes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from featcache.data.arrow_table import SplitTable
from featcache.data.formats.delimited import INTEGER
from featcache.data.label_cells import LabelCells, LabelValue, read_cells
from featcache.errors import SourceError
from featcache.settings import DataSettings

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 20  # names in an error message


@dataclass(frozen=True, eq=False)
class LabelledTable:
    """A checked table: its usable rows, and one entry for each label of a row.

    Entry e gives row `rows[places[e]]` of the source the label `values[codes[e]]`. In single-label
    data every row has one entry, and `places` is 0, 1, ..., N - 1.
    """

    table: SplitTable
    several: bool  # multi-label: a row has any number of labels
    rows: NDArray[np.int64]  # [N], counted from 0
    places: NDArray[np.int64]  # [M], ascending
    codes: NDArray[np.int64]  # [M], each label of a row once
    values: list[int | str]
    declared: tuple[str, ...] | None  # names of the labels 0, 1, ...
    skipped: int
    names: list[str] = field(default_factory=list)  # of `values`
    notes: tuple[str, ...] = ()

    def row_of(self, code: int) -> int:
        """The first row of the source with this label, counted from 1."""
        return int(self.rows[self.places[np.argmax(self.codes == code)]]) + 1


def read_labels(name: str, table: SplitTable, data: DataSettings) -> LabelledTable:
    """The usable rows of `table`.

    Raises:
        SourceError: a row is not usable, and such rows may not be left out; names the first one.
    """
    if len(table.dataset) == 0:
        raise SourceError(f"the {name} split has no rows", hint="leave it out, or name a file with rows")
    column = table.columns.label
    cells = read_cells(
        name,
        table.dataset.select_columns([column]).with_format("arrow")[:].column(column),
        encoded=table.encoded,
        separator=data.label_separator,
    )
    values, lookup, declared = _label_values(name, cells, table.class_names, data.task)
    codes = lookup[cells.codes]
    unlabelled = cells.unlabelled.copy()
    unlabelled[cells.rows[codes < 0]] = True
    if unlabelled.all():
        hidden = ": all are -1" if set(cells.items) <= {-1, "-1"} and cells.items else ""
        raise SourceError(
            f"the {name} split has no labels (column {column!r}{hidden})",
            hint="hidden labels cannot be scored; --test-split validation tests on the validation split"
            " instead, and holds out another one from train",
        )
    faults = {
        "no usable text": bad_texts(table),
        "no label": unlabelled,
        "a null among its labels": cells.hollow,
    }
    notes = bad_rows_note(name, faults, data)
    good = ~np.logical_or.reduce(list(faults.values()))
    if not good.any():
        raise SourceError(
            f"the {name} split has no row with both text and label",
            hint="are these the right columns? --text-column, --label-column",
        )
    places, codes = _entries_within(good, cells.rows, codes)
    if cells.several:  # "1" and "1.0" were two labels as written, and are one
        places, codes = np.divmod(np.unique(places * max(len(values), 1) + codes), max(len(values), 1))
    one = LabelledTable(
        table=table, several=cells.several, rows=np.flatnonzero(good), places=places, codes=codes,
        values=values, declared=data.label_names or declared, skipped=int((~good).sum()),
    )  # fmt: skip
    return replace(one, names=_value_names(name, one), notes=(*notes, *_list_note(name, one)))


def check_one_kind(read: Mapping[str, LabelledTable]) -> None:
    """Raise where some splits have one label a row and others lists of labels."""
    kinds = {one.several: split for split, one in read.items()}
    if len(kinds) > 1:
        raise SourceError(
            f"the labels of {kinds[True]} are lists, those of {kinds[False]} are not",
            hint="multi-label data has a list of labels in every row of every split, [] for none",
        )


def label_order(read: Mapping[str, LabelledTable], data: DataSettings) -> tuple[str, ...]:
    """The label names of a source: as declared, else integers by value, else strings sorted."""
    values: dict[int | str, str] = {}
    for split, one in read.items():
        present = np.unique(one.codes).tolist()
        used = {one.values[code]: one.names[code] for code in present}
        values |= used
        if split == "train":
            _check_labels_differ(one, list(used.values()))
        for code in present:
            if data.label_names and one.names[code] not in data.label_names:
                raise SourceError(
                    f"label {one.names[code]!r} in row {one.row_of(code)} of {split} is not in --label-names",
                    hint=f"they are: {_listed(data.label_names)}",
                )
    declared = next((one.declared for one in read.values() if one.declared is not None), None)
    if declared is not None:
        rest = sorted(set(values.values()) - set(declared))
        return (*declared, *rest)
    if not values:
        raise SourceError(
            f"no row of {' or '.join(read)} has a label", hint="is it the right column? --label-column"
        )
    if all(isinstance(value, int) for value in values):
        return tuple(str(value) for value in sorted(cast("dict[int, str]", values)))
    return tuple(sorted(values.values()))


def known_to_train(read: Mapping[str, LabelledTable], data: DataSettings) -> dict[str, LabelledTable]:
    """The splits without rows whose labels are not in train.

    Raises:
        SourceError: there is such a row, and it may not be left out.
    """
    train = read["train"]
    known = {train.names[code] for code in np.unique(train.codes)}
    return {split: _known(split, one, known, data) for split, one in read.items()}


def label_indexes(one: LabelledTable, order: Sequence[str]) -> NDArray[np.int64] | NDArray[np.uint8]:
    """The labels of `one` as indexes into `order`, int64 [N]; multi-hot uint8 [N, C] for multi-label."""
    position = {name: index for index, name in enumerate(order)}
    # -1 stands for values whose rows were all left out.
    lookup = np.array([position.get(name, -1) for name in one.names], np.int64)
    if not one.several:
        return lookup[one.codes]
    hot = np.zeros((len(one.rows), len(order)), np.uint8)
    hot[one.places, lookup[one.codes]] = 1
    return hot


def bad_texts(table: SplitTable) -> NDArray[np.bool_]:
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


def bad_rows_note(name: str, faults: Mapping[str, NDArray[np.bool_]], data: DataSettings) -> tuple[str, ...]:
    """The note about rows left out; none if all are usable.

    Args:
        faults: bool [N] by what is wrong with a row ("no label"), True where it is.

    Raises:
        SourceError: there are such rows, and they may not be left out.
    """
    rows = np.flatnonzero(np.logical_or.reduce(list(faults.values()))) + 1
    if len(rows) == 0:
        return ()
    if not data.skip_bad_rows:
        fault = next(fault for fault, bad in faults.items() if bad[rows[0] - 1])
        more = "" if len(rows) == 1 else f", the first of {len(rows)} rows without text or label"
        raise SourceError(
            f"row {rows[0]} of {name} has {fault}{more}",
            hint="leave such rows out with --skip-bad-rows",
        )
    return (_left_out(name, rows, "without text or label"),)


def _left_out(name: str, rows: NDArray[np.int64], why: str) -> str:
    """The note about `rows` (counted from 1) that were left out."""
    shown = ", ".join(str(row) for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
    plural = "" if len(rows) == 1 else "s"
    return f"left out {len(rows)} row{plural} {why}: row{plural} {shown} of {name}"


def _known(split: str, one: LabelledTable, known: set[str], data: DataSettings) -> LabelledTable:
    """`one` without the rows that have a label outside `known`."""
    strange = np.array([name not in known for name in one.names], bool)[one.codes]
    if not strange.any():
        return one
    if not data.skip_bad_rows:
        code = int(one.codes[np.argmax(strange)])
        amounts = len(known) > _SHOWN and all(isinstance(value, int) for value in one.values)
        raise SourceError(
            f"label {one.names[code]!r} in row {one.row_of(code)} of {split} never occurs in train",
            hint=f"labels of train: {_listed(sorted(known))}; leave such rows out with --skip-bad-rows"
            + ("; if the labels are amounts and no classes: --task regression" if amounts else ""),
        )
    good = np.ones(len(one.rows), bool)
    good[one.places[strange]] = False
    if not good.any():
        raise SourceError(
            f"every row of {split} has a label that never occurs in train",
            hint="do train and this split spell their labels alike?",
        )
    places, codes = _entries_within(good, one.places, one.codes)
    note = _left_out(split, one.rows[~good] + 1, "with a label that never occurs in train")
    return replace(
        one,
        rows=one.rows[good],
        places=places,
        codes=codes,
        notes=(*one.notes, note),
        skipped=one.skipped + int((~good).sum()),
    )


def _entries_within(
    good: NDArray[np.bool_], places: NDArray[np.int64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The entries of the `good` rows, with their places counted among these rows."""
    inside = good[places]
    return (np.cumsum(good) - 1)[places[inside]], codes[inside]


def _check_labels_differ(train: LabelledTable, used: Sequence[str]) -> None:
    """Raise if no two rows of train differ in their labels."""
    if not used:
        raise SourceError("no row of train has a label", hint="was the right --label-column taken?")
    counts = np.bincount(train.codes)
    if (counts[counts > 0] == len(train.rows)).all():
        raise SourceError(
            f"all labels of train are the same: {_listed([repr(name) for name in used])}",
            hint="a head needs at least two classes; was the right --label-column taken?",
        )


def _list_note(name: str, one: LabelledTable) -> tuple[str, ...]:
    """A note if every list has one label: the separator may be wrong, or the data be single-label."""
    counts = np.bincount(one.places, minlength=len(one.rows))
    if not one.several or name != "train" or (counts != 1).any():
        return ()
    return (f"every row of {name} has exactly one label; its labels are lists, so it is multi-label",)


def _label_values(
    name: str, cells: LabelCells, class_names: tuple[str, ...] | None, task: str | None
) -> tuple[list[int | str], NDArray[np.int64], tuple[str, ...] | None]:
    """The distinct labels, the code of each item (int64; -1: no label), and declared names."""
    declared = class_names
    if cells.items and all(isinstance(item, bool) for item in cells.items):
        declared = declared or ("False", "True")
    typed = _typed_labels(name, cells, task)
    # In hub datasets -1 stands for a hidden label; together with other numbers it is an ordinary label.
    hides = not cells.several and (declared is not None or set(typed) == {-1})
    values = [value for value in dict.fromkeys(typed) if not (hides and value == -1)]
    index = {value: code for code, value in enumerate(values)}
    return values, np.array([index.get(value, -1) for value in typed], np.int64), declared


def _typed_labels(name: str, cells: LabelCells, task: str | None) -> list[int | str]:
    """The items as integers if all of them can be, else as strings.

    Raises:
        SourceError: they are numbers that are not whole, and nobody said that these are names of classes.
    """
    if not all(_is_number(item) for item in cells.items):
        return _one_spelling([str(item) for item in cells.items])
    typed: list[int | str] = []
    for code, item in enumerate(cells.items):
        number = _integer(item)
        if number is None and task == "classification":
            return _one_spelling([str(item) for item in cells.items])
        if number is None:
            raise SourceError(
                f"label {item} in row {cells.row_of(code)} of {name} is not a whole number: "
                "these labels look like numbers",
                hint="--task regression predicts numbers; --task classification makes each number a class; "
                "--label-column names another column",
            )
        typed.append(number)
    return typed


def _one_spelling(texts: list[str]) -> list[int | str]:
    """Texts, of which `1.0` becomes `1` where that is a label, too."""
    known = set(texts)
    whole = {text: str(_integer(text)) for text in texts if _is_number(text)}
    return [whole[text] if whole.get(text) in known else text for text in texts]


def _is_number(value: LabelValue) -> bool:
    # Longer digits are a name: as a float they would lose their last digits.
    return not isinstance(value, str) or (len(value) < 19 and NUMBER.fullmatch(value) is not None)


def _integer(value: LabelValue) -> int | None:
    """The whole number that `value` is or spells, else None."""
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return int(value)
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return int(number)


def _value_names(split: str, one: LabelledTable) -> list[str]:
    """The names of the values: of label i the i-th declared name, else the value as it is written."""
    names = []
    used = set(np.unique(one.codes).tolist())
    for code, value in enumerate(one.values):
        if not isinstance(value, int) or one.declared is None:
            names.append(str(value))
        elif 0 <= value < (count := len(one.declared)):
            names.append(one.declared[value])
        elif code in used:
            raise SourceError(
                f"label {value} in row {one.row_of(code)} of {split} has no name: there are {count}"
                f" label names, for labels 0 to {count - 1}",
                hint="give --label-names one name for each label",
            )
        else:  # only in rows that were left out
            names.append(str(value))
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
