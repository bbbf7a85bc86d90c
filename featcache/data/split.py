"""Texts and labels: hub id, `save_to_disk` folder, csv/tsv/json/jsonl/parquet -> `Split`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.data.arrow_table import SplitTable, open_tables, quiet_datasets, table_in_memory
from featcache.data.holdout import parts_by_key, stratified_share
from featcache.data.hub_dataset import hub_commit
from featcache.data.label_spelling import with_one_spelling
from featcache.data.labels import (
    LabelledTable,
    bad_rows_note,
    bad_texts,
    check_one_kind,
    known_to_train,
    label_indexes,
    label_order,
    read_labels,
)
from featcache.data.locate import SPLITS, file_facts, folder_hashes, locate, require_unchanged, used_as
from featcache.data.number_labels import (
    NumberedTable,
    check_number_settings,
    check_numbers_differ,
    read_numbers,
)
from featcache.errors import SourceError, UsageError
from featcache.fingerprint import REGRESSION, row_hashes, row_keys, task_of
from featcache.settings import DataSettings
from featcache.system.text import normalised

__all__ = [
    "SPLITS", "RowSelection", "Split", "count_labels", "describe_source", "from_texts", "load_splits",
]  # fmt: skip

RowSelection = Sequence[int] | NDArray[Any] | slice


@dataclass(frozen=True, eq=False)
class Split:
    """One split, in file order; its texts stay on disk until they are read."""

    name: str  #: "train", "validation" or "test"
    #: int64 [N], indexes into `label_names`, -1 where there are none; multi-label: multi-hot uint8 [N, C];
    #: numbers: float64 [N]
    labels: NDArray[np.int64] | NDArray[np.uint8] | NDArray[np.float64]
    label_names: tuple[str, ...]  #: the same for all splits of one source; numbers have none
    row_numbers: NDArray[np.int64]  #: int64 [N], rows of the source, counted from 0
    notes: tuple[str, ...] = ()  #: what was held out or left out, as sentences
    read_as: tuple[str, ...] = ()  #: which columns are read, and in which encoding, as sentences
    skipped: int = 0  #: unusable rows of this split that were left out
    _table: SplitTable = field(default=cast(Any, None), repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def source_rows(self) -> int:
        """Rows of the source, held out and left out ones too: `row_numbers` are below it."""
        return len(self._table.dataset)

    def some(self, rows: NDArray[np.int64]) -> Split:
        """The rows of these numbers as a split of their own."""
        return replace(self, labels=self.labels[rows], row_numbers=self.row_numbers[rows])

    def texts(self, rows: RowSelection) -> list[str]:
        """The texts of these rows of the split (0..N-1, a slice or a mask); only they are read."""
        return self._read(self._table.columns.text, rows)

    @property
    def has_pairs(self) -> bool:
        """Whether each row has a second text."""
        return self._table.columns.pair is not None

    def pairs(self, rows: RowSelection) -> list[str] | None:
        """The second texts of these rows, or None when the source has no pair column."""
        pair = self._table.columns.pair
        return None if pair is None else self._read(pair, rows)

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], list[str] | None]]:
        """(texts, pairs) of `size` rows at a time, in file order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.texts(rows), self.pairs(rows)

    def _read(self, column: str, rows: RowSelection) -> list[str]:
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows.astype(np.int64) if rows.size == 0 else rows
        wanted = self.row_numbers[rows]
        if len(wanted) == 0:
            return []
        source = self._table.dataset.select_columns([column]).with_format("arrow")
        # A run of rows is a slice of the memory-mapped file; scattered rows have to be gathered.
        if np.array_equal(wanted, np.arange(wanted[0], wanted[0] + len(wanted))):
            table = source[int(wanted[0]) : int(wanted[-1]) + 1]
        else:
            table = source[wanted.tolist()]
        return cast(list[str], table.column(column).to_pylist())


def count_labels(labels: NDArray[Any], names: Sequence[str]) -> dict[str, int]:
    """Rows by label name; empty for numbers, which have no names.

    Args:
        labels: int64 [N], indexes into `names`, -1 for none; or multi-hot uint8 [N, C].
    """
    if task_of(labels) == REGRESSION:
        return {}
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels[labels >= 0], minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def load_splits(
    data: DataSettings, names: Sequence[str], *, seed: int, hold_out: bool = True
) -> dict[str, Split]:
    """The splits called `names`; every row of them is checked.

    Without a validation split, a stratified share of train is held out for it, which depends only on the
    seed and the rows; "train" is then the rest. With `test_share`, a test split that is missing is held out,
    too: then a hash of each text decides, so that equal texts stay together and added rows move none.

    Args:
        data: where the texts are, and which columns to take.
        names: some of `SPLITS`.
        seed: decides which rows are held out.
        hold_out: False: train keeps all of its rows.

    Raises:
        UsageError: a setting is not valid.
        SourceError: texts or labels do not exist, or cannot be read or used.
    """
    _check_settings(data, names)
    with quiet_datasets():
        tables, others = open_tables(data)
        there = available(tables, data) if hold_out else tuple(tables)
        if missing := [name for name in names if name not in there]:
            where = "--data-files" if data.data_files else data.dataset
            found = ", ".join([*tables, *others]) or "none"
            hint = "hold one out of train: --test-share 0.1" if missing == ["test"] else None
            raise SourceError(f"no {missing[0]} split in {where}; its splits are: {found}", hint=hint)
        reference = ["train"] if "train" in tables else list(tables)
        wanted = [name for name in SPLITS if name in tables and (name in names or name in reference)]
        opened = {name: tables[name]() for name in wanted}
        splits = (_of_numbers if data.task == REGRESSION else _of_classes)(opened, reference, data)
    drawn = [name for name in there if name not in tables]
    if drawn and {"train", *drawn} & set(names):
        splits |= _drawn(splits["train"], drawn, data, seed)
    return {name: splits[name] for name in names}


def available(tables: Collection[str], data: DataSettings) -> tuple[str, ...]:
    """Those of `SPLITS` that the source has as `tables`, and those that are held out of train."""
    held_out = {"validation", *(["test"] if data.test_share else [])} if "train" in tables else set()
    return tuple(name for name in SPLITS if name in tables or name in held_out)


def describe_source(data: DataSettings, *, seed: int) -> dict[str, object] | None:
    """Everything that determines the rows, as a JSON object; `datasets` is not imported.

    Local files are described by their SHA-256, a hub dataset by its commit. A split of one file is
    one object, a split of several files a list of them.

    Returns:
        The object, or None for a hub dataset whose commit cannot be found out.

    Raises:
        SourceError: a file or folder does not exist or cannot be read.
    """
    _check_settings(data, ())
    location = locate(data)
    document: dict[str, object] = {
        "text_column": data.text_column,
        "pair_column": data.pair_column,
        "label_column": data.label_column,
        "label_names": list(data.label_names) if data.label_names else None,
        "skip_bad_rows": data.skip_bad_rows,
    }
    # Left out where they are not set, so that requests of earlier versions still match.
    added = ("label_separator", "encoding", "sheet", "label_columns", "test_split", "task", "test_share")
    document |= {name: _plain(getattr(data, name)) for name in added if getattr(data, name) is not None}
    if data.similar_labels == "merge":
        document["similar_labels"] = data.similar_labels
    if location.files:
        hashes = {split: [file_facts(file) for file in files] for split, files in location.files.items()}
        document["files"] = {split: parts if len(parts) > 1 else parts[0] for split, parts in hashes.items()}
    elif location.folder is not None:
        document["saved"] = folder_hashes(location.folder)
    else:
        commit = hub_commit(location.hub_id, location.config, data.dataset_revision)
        if commit is None:
            return None
        document |= {"dataset": location.hub_id, "config": location.config, "commit": commit}
    # The splits of a hub dataset are not known before it is loaded: then seed and share count.
    known = {used_as(name, data) for name in location.splits}
    drawn = "validation" not in known or ("test" not in known and data.test_share is not None)
    if drawn and ("train" in known or not known):
        document |= {"validation_share": data.validation_share, "seed": seed}
    return document


def require_same_source(data: DataSettings, described: Mapping[str, Any], *, seed: int) -> None:
    """Refuse local data that is no longer what `describe_source` described before it was loaded.

    A hub dataset is not asked for again: its commit names the rows.

    Raises:
        SourceError: names the files that were written, replaced, added or removed.
    """
    before = _hashes(described)
    if before:
        require_unchanged(before, _hashes(describe_source(data, seed=seed) or {}))


def _hashes(described: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by name of the files of a description."""
    found: dict[str, str] = dict(described.get("saved", {}))
    for split, parts in described.get("files", {}).items():
        for part in parts if isinstance(parts, list) else [parts]:
            found[f"{part['name']} ({split})"] = part["sha256"]
    return found


def from_texts(
    name: str,
    texts: Iterable[str],
    labels: Iterable[object] | NDArray[Any] | None = None,
    label_names: Sequence[str] | None = None,
    pairs: Iterable[str] | None = None,
    task: str | None = None,
) -> Split:
    """A split from values in memory.

    Args:
        name: of the split.
        texts: N texts, none of them empty.
        labels: N integers or strings, as in a file; or N lists of them, or a multi-hot array [N, C]
            (multi-label). None gives labels of -1 and no names.
        label_names: names of labels 0, 1, ..., or the order of string labels; those of a multi-hot
            array's columns are by default their numbers.
        pairs: N second texts.
        task: see `--task`; with `regression` the labels are N numbers.

    Raises:
        SourceError: a text is empty or unusable, a label is not in `label_names`, or lengths differ.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        labels, label_names = _lists_of(labels, label_names)
    table = table_in_memory(name, texts, labels, pairs)
    data = DataSettings(label_names=tuple(label_names) if label_names is not None else None, task=task)
    if labels is None:
        bad_rows_note(name, {"no usable text": bad_texts(table)}, data)
        rows, unlabelled = np.arange(len(table.dataset)), np.full(len(table.dataset), -1, np.int64)
        return Split(name, unlabelled, data.label_names or (), rows, _table=table)
    if task == REGRESSION:
        return _numbered(name, read_numbers(name, table, data))
    read = read_labels(name, table, data)
    return _split(name, read, label_order({name: read}, data))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _check_settings(data: DataSettings, names: Sequence[str]) -> None:
    for name in names:
        if name not in SPLITS:
            raise UsageError(f"unknown split {name!r}", hint=f"splits are: {', '.join(SPLITS)}")
    if not 0 < data.validation_share < 1:
        raise UsageError(f"--validation-share must be between 0 and 1, got {data.validation_share}")
    if data.label_separator == "":
        raise UsageError("--label-separator is empty", hint="e.g. --label-separator ';'")
    if data.task == REGRESSION:
        check_number_settings(data)
    if data.label_names and len(set(data.label_names)) < len(data.label_names):
        raise UsageError(f"--label-names has a name twice: {', '.join(data.label_names)}")


def _of_classes(
    tables: Mapping[str, SplitTable], reference: Sequence[str], data: DataSettings
) -> dict[str, Split]:
    """Splits whose labels are classes; the splits of `reference` say which there are."""
    read = {name: read_labels(name, table, data) for name, table in tables.items()}
    check_one_kind(read)
    read = with_one_spelling(read, data)
    order = label_order({name: read[name] for name in reference}, data)
    if "train" in read:
        read = known_to_train(read, data)
    return {name: _split(name, one, order) for name, one in read.items()}


def _of_numbers(
    tables: Mapping[str, SplitTable], reference: Sequence[str], data: DataSettings
) -> dict[str, Split]:
    """Splits whose labels are numbers."""
    read = {name: read_numbers(name, table, data) for name, table in tables.items()}
    if "train" in read:
        check_numbers_differ(read["train"])
    return {name: _numbered(name, one) for name, one in read.items()}


def _numbered(name: str, read: NumberedTable) -> Split:
    return Split(
        name=name, labels=read.numbers, label_names=(), row_numbers=read.rows,
        notes=read.notes, read_as=read.table.read_as, skipped=read.skipped, _table=read.table,
    )  # fmt: skip


def _split(name: str, read: LabelledTable, order: tuple[str, ...]) -> Split:
    return Split(
        name=name, labels=label_indexes(read, order), label_names=order, row_numbers=read.rows,
        notes=read.notes, read_as=read.table.read_as, skipped=read.skipped, _table=read.table,
    )  # fmt: skip


def _drawn(train: Split, names: Sequence[str], data: DataSettings, seed: int) -> dict[str, Split]:
    """Train and the splits that are held out of it."""
    if "test" not in names:
        return _held_out(train, data.validation_share, seed)
    shares = [data.test_share if name == "test" else data.validation_share for name in names]
    keys = [
        row_keys(row_hashes(list(map(normalised, texts)), pairs and list(map(normalised, pairs))))
        for texts, pairs in train.batches()
    ]
    numbers = task_of(train.labels) == REGRESSION
    classes = np.zeros(len(train), np.int64) if numbers else cast("NDArray[np.int64]", train.labels)
    parts = parts_by_key(classes, np.concatenate(keys), cast("list[float]", shares), seed)
    rows = {name: np.flatnonzero(parts == number) for number, name in enumerate(["train", *names])}
    if short := [name for name, places in rows.items() if not len(places)]:
        hint = "add rows, or a file of each split"
        if not numbers and len(np.unique(classes)) > len(train) / 2:
            hint = "most rows have a label of their own: --label-column names the right column"
        raise SourceError(
            f"no {' and no '.join(names)} split, and train has too few different texts to hold "
            f"{'them' if len(names) > 1 else 'one'} out: none is left for {short[0]}",
            hint=hint,
        )
    counts = " and ".join(f"{len(rows[name])} for {name}" for name in names)
    note = f"of {len(train)} train rows {counts} are held out by a hash of each text (seed {seed})"
    notes = (*train.notes, f"{note}: equal texts stay together, added rows move none")
    return {
        name: replace(train.some(places), name=name, notes=notes, skipped=train.skipped * (name == "train"))
        for name, places in rows.items()
    }


def _held_out(train: Split, share: float, seed: int) -> dict[str, Split]:
    """`train` without the rows held out of it, and those rows as the validation split."""
    numbers = task_of(train.labels) == REGRESSION
    # Numbers are one class: rows drawn at random are what the guarantee of an interval assumes.
    classes = np.zeros(len(train), np.int64) if numbers else train.labels
    keep, held = stratified_share(cast("NDArray[np.int64]", classes), share, seed)
    if len(held) == 0:
        raise SourceError(
            f"no validation split, and train has too few rows{'' if numbers else ' of any class'} to hold "
            "one out",
            hint="add a validation file, or more train rows",
        )
    note = f"no validation split: {len(held)} of {len(train)} train rows held out"
    notes = (*train.notes, f"{note} ({'at random' if numbers else 'stratified'}, seed {seed})")

    def part(rows: NDArray[np.int64], **changes: Any) -> Split:
        labels, places = train.labels[rows], train.row_numbers[rows]
        return replace(train, labels=labels, row_numbers=places, notes=notes, **changes)

    # The rows left out are counted once, with train.
    return {"train": part(keep), "validation": part(held, name="validation", skipped=0)}


def _lists_of(hot: NDArray[Any], names: Sequence[str] | None) -> tuple[list[list[int]], Sequence[str]]:
    """A multi-hot array as lists of labels, and a name for each of its columns."""
    if not np.isin(hot, (0, 1)).all():
        row = int(np.argmax(~np.isin(hot, (0, 1)).all(1))) + 1
        raise SourceError(
            f"row {row} of the label array is not multi-hot: {hot[row - 1]!s:.60}",
            hint="0 or 1 for each label",
        )
    if names is None:
        names = [str(column) for column in range(hot.shape[1])]
    if len(names) != hot.shape[1]:
        raise SourceError(
            f"the label array has {hot.shape[1]} columns, and there are {len(names)} names",
            hint="one name for each column",
        )
    return [np.flatnonzero(row).tolist() for row in hot], names
