"""Every split of a source as a memory-mapped `datasets.Dataset`.

Files are read row by row into an Arrow file that `datasets` keeps and memory-maps, so that a file of
millions of rows is never held in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featcache.data.columns import ReadColumns, SourceColumns, pick_columns
from featcache.data.formats.lines import DataPath, first_line
from featcache.data.formats.open import DataFile, open_data_file
from featcache.data.hub_dataset import load_from_hub
from featcache.data.label_cells import label_cell, text_cell
from featcache.data.locate import content_hash, locate, require_unchanged, used_as
from featcache.errors import SourceError
from featcache.settings import DataSettings
from featcache.system.durable import disk_error

if TYPE_CHECKING:
    import datasets

_READER_VERSION = 1  # part of the Arrow cache's key: raise it when a reader gives other rows


class SplitTable(NamedTuple):
    """One split of a source as a memory-mapped dataset."""

    dataset: datasets.Dataset
    columns: SourceColumns
    encoded: bool  # labels are JSON in a string column, since files may mix types in one column
    class_names: tuple[str, ...] | None = None  # of a column of ClassLabel, or of lists of it
    read_as: tuple[str, ...] = ()  # which columns and which encoding, as sentences


def open_tables(data: DataSettings) -> tuple[dict[str, Callable[[], SplitTable]], list[str]]:
    """A function for each split of `SPLITS` that opens it, and the names of other splits."""
    location = locate(data)
    found: Mapping[str, Callable[[], SplitTable]]
    if location.files:
        files = location.files.items()
        found = {split: partial(_file_table, split, paths, data) for split, paths in files}
    else:
        if location.folder is not None:
            sets = open_saved_splits(location.folder)
        else:
            sets = load_from_hub(location.hub_id, location.config, data.dataset_revision)
        found = {str(key): partial(_dataset_table, str(key), one, data) for key, one in sets.items()}
    tables: dict[str, Callable[[], SplitTable]] = {}
    others = []
    for key, table in found.items():
        split = used_as(key, data)
        if split is None or split in tables:
            others.append(key)
        else:
            tables[split] = table
    return tables, others


def _dataset_table(split: str, dataset: datasets.Dataset, data: DataSettings) -> SplitTable:
    import datasets

    picked = pick_columns(dataset.column_names, data, data.dataset)
    for column in set(picked.names) - set(picked.label):
        kind = getattr(dataset.features[column], "dtype", "")
        if kind not in ("string", "large_string"):
            held = kind or type(dataset.features[column]).__name__
            raise SourceError(
                f"column {column!r} of {data.dataset} holds {held}, not text",
                hint="name the column with the text: --text-column",
            )
    notes = (picked.note(dataset.column_names),)
    names = None
    if not picked.flags:
        label = _innermost(dataset.features[picked.label[0]])
        names = tuple(label.names) if isinstance(label, datasets.ClassLabel) and label.names else None
    if picked.single is not None:
        return SplitTable(dataset, picked.single, encoded=False, class_names=names, read_as=notes)
    rows = dataset.select_columns(picked.names)
    key = [str(dataset._fingerprint), asdict(picked)]
    return _converted(split, [(lambda _: iter(rows), picked)], key, data.dataset)._replace(
        class_names=picked.label if picked.flags else names, read_as=notes
    )


def _innermost(feature: Any) -> Any:
    """The feature that a list holds (older versions of `datasets` have Python lists); else `feature`."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)


def open_saved_splits(folder: Path) -> Mapping[str, datasets.Dataset]:
    """The splits in a folder that `datasets` saved; a single dataset is train.

    Raises:
        SourceError: it is no such folder, or a damaged one.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a broken folder raises errors of many types
        raise SourceError(
            f"cannot read the saved dataset {folder}: {first_line(error)}",
            hint="save it again: dataset.save_to_disk",
        ) from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _file_table(split: str, files: Sequence[DataPath], data: DataSettings) -> SplitTable:
    """The rows of all `files`, in order, as one memory-mapped dataset."""
    # `datasets` identifies a local file by path and mtime; here the key is a hash of its bytes.
    hashes = {str(path): content_hash(path) for path in files}
    opened = [open_data_file(path, data) for path in files]
    picked = [pick_columns(file.columns, data, file.where) for file in opened]
    names = {
        columns.label if columns.flags else file.class_names.get(columns.label[0])
        for file, columns in zip(opened, picked, strict=True)
    }
    if len(names) > 1:
        raise SourceError(
            f"the files of the {split} split have different label names",
            hint="write the labels alike in all files, or name them: --label-names",
        )
    key = [
        [hashes[str(file.path)], file.key, columns.single or asdict(columns)]
        for file, columns in zip(opened, picked, strict=True)
    ]
    sources = [(_unchanged_rows(file, hashes), columns) for file, columns in zip(opened, picked, strict=True)]
    notes = dict.fromkeys(columns.note(file.columns) for file, columns in zip(opened, picked, strict=True))
    said = dict.fromkeys(file.note for file in opened if file.note)
    table = _converted(split, sources, key, str(files[0]))
    return table._replace(class_names=names.pop(), read_as=(*said, *notes))


RowsOf = Callable[[ReadColumns], Iterator[Mapping[str, object]]]
RowSource = tuple[RowsOf, ReadColumns]


def _unchanged_rows(file: DataFile, hashes: Mapping[str, str]) -> RowsOf:
    """The rows of a file that has its hash of `hashes`; if it changed, an error at the end keeps nothing."""

    def rows(columns: ReadColumns) -> Iterator[Mapping[str, object]]:
        yield from file.rows(columns)
        path = str(file.path)
        require_unchanged({path: hashes[path]}, {path: content_hash(file.path)})

    return rows


def _converted(split: str, sources: Sequence[RowSource], key: object, where: str) -> SplitTable:
    """The rows of all `sources`, in order, in a file that `datasets` keeps under `key`.

    Args:
        where: the first of them, for messages.
    """
    import datasets

    document = json.dumps([_READER_VERSION, key])
    has_pair = any(columns.pair is not None for _, columns in sources)
    keys = ["text", "label", "pair"] if has_pair else ["text", "label"]
    try:
        dataset = datasets.Dataset.from_generator(
            lambda: _examples(split, sources, where),
            features=datasets.Features({key: datasets.Value("string") for key in keys}),
            fingerprint=hashlib.sha256(document.encode()).hexdigest()[:32],
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, SourceError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):
            raise disk_error(error.__cause__, f"write in {datasets.config.HF_DATASETS_CACHE}") from error
        raise SourceError(
            f"cannot read {where}: {first_line(error.__cause__ or error)}",
            hint="the file is damaged, or another program wrote it: write it again",
        ) from error
    columns = SourceColumns("text", "label", "pair" if has_pair else None)
    return SplitTable(dataset, columns, encoded=True)


def _examples(split: str, sources: Sequence[RowSource], where: str) -> Iterator[dict[str, str | None]]:
    row = 0
    for rows, columns in sources:
        for values in rows(columns):
            example = {
                "text": text_cell(columns.text_of(values), row, split),
                "label": label_cell(columns.label_of(values), row, split),
            }
            if columns.pair is not None:
                example["pair"] = text_cell(columns.pair_of(values), row, split)
            yield example
            row += 1
    if row == 0:
        raise SourceError(
            f"the {split} split has no rows: {where} has none", hint="leave it out, or name a file with rows"
        )


def table_in_memory(
    name: str, texts: Iterable[str], labels: Iterable[object] | None, pairs: Iterable[str] | None
) -> SplitTable:
    """Values in memory as a table, checked like those of a file.

    Raises:
        SourceError: no rows, unequal lengths, or a value that cannot be a text or a label.
    """
    import datasets

    columns: dict[str, list[Any]] = {"text": list(texts)}
    if pairs is not None:
        columns["pair"] = list(pairs)
    if labels is not None:
        columns["label"] = list(labels)
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {key}s" for key, values in columns.items())
        raise SourceError(
            f"{name}: {lengths}: the lengths differ", hint="give every list an item for each text"
        )
    if not columns["text"]:
        raise SourceError(f"the {name} split has no rows", hint="give at least one text")
    for key, values in columns.items():
        cell = label_cell if key == "label" else text_cell
        columns[key] = [cell(value, row, name) for row, value in enumerate(values)]
    kinds = datasets.Features({key: datasets.Value("string") for key in columns})
    dataset = datasets.Dataset.from_dict(columns, features=kinds)
    picked = SourceColumns("text", "label", "pair" if pairs is not None else None)
    return SplitTable(dataset, picked, encoded=True)


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Turn off progress bars and log lines of `datasets`; both are restored afterwards."""
    import datasets

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it also logs the errors that it raises
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
