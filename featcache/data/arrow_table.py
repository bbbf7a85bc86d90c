"""Every split of a source as a memory-mapped `datasets.Dataset`.

Files are read row by row into an Arrow file that `datasets` keeps and memory-maps, so that a file of
millions of rows is never held in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from featcache.data.columns import SourceColumns, pick_columns
from featcache.data.formats.lines import first_line
from featcache.data.formats.open import DataFile, open_data_file
from featcache.data.hub_dataset import load_from_hub
from featcache.data.label_cells import label_cell, text_cell
from featcache.data.locate import content_hash, locate, require_unchanged, split_name
from featcache.errors import SourceError
from featcache.settings import DataSettings

if TYPE_CHECKING:
    import datasets

_READER_VERSION = 1  # part of the Arrow cache's key: raise it when a reader gives other rows


class SplitTable(NamedTuple):
    """One split of a source as a memory-mapped dataset."""

    dataset: datasets.Dataset
    columns: SourceColumns
    encoded: bool  # labels are JSON in a string column, since files may mix types in one column
    class_names: tuple[str, ...] | None = None  # of a column of ClassLabel, or of lists of it


def open_tables(data: DataSettings) -> tuple[dict[str, Callable[[], SplitTable]], list[str]]:
    """A function for each split of `SPLITS` that opens it, and the names of other splits."""
    location = locate(data)
    if location.files:
        files = location.files.items()
        return {split: partial(_file_table, split, paths, data) for split, paths in files}, []
    if location.folder is not None:
        found = _saved(location.folder)
    else:
        found = load_from_hub(location.hub_id, location.config, data.dataset_revision)
    tables: dict[str, Callable[[], SplitTable]] = {}
    others = []
    for key, dataset in found.items():
        split = split_name(str(key))
        if split is None or split in tables:
            others.append(str(key))
        else:
            tables[split] = partial(_dataset_table, dataset, data)
    return tables, others


def _dataset_table(dataset: datasets.Dataset, data: DataSettings) -> SplitTable:
    import datasets

    columns = pick_columns(dataset.column_names, data, data.dataset)
    for column in (columns.text, columns.pair):
        kind = getattr(dataset.features[column], "dtype", "") if column is not None else "string"
        if kind not in ("string", "large_string"):
            held = kind or type(dataset.features[column]).__name__
            raise SourceError(
                f"column {column!r} of {data.dataset} holds {held}, not text",
                hint="name the column with the text: --text-column",
            )
    label = _innermost(dataset.features[columns.label])
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) and label.names else None
    return SplitTable(dataset, columns, encoded=False, class_names=names)


def _innermost(feature: Any) -> Any:
    """The feature that a list holds (older versions of `datasets` have Python lists); else `feature`."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)


def _saved(folder: Path) -> Mapping[str, datasets.Dataset]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a broken folder raises errors of many types
        raise SourceError(f"cannot read the saved dataset {folder}: {first_line(error)}") from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _file_table(split: str, files: Sequence[Path], data: DataSettings) -> SplitTable:
    """The rows of all `files`, in order, as one memory-mapped dataset."""
    import datasets

    # `datasets` identifies a local file by path and mtime; here the key is a hash of its bytes.
    hashes = {str(path): content_hash(path) for path in files}
    opened = [open_data_file(path, data) for path in files]
    picked = [(file, pick_columns(file.columns, data, file.where)) for file in opened]
    names = {file.class_names.get(columns.label) for file, columns in picked}
    if len(names) > 1:
        raise SourceError(f"the files of the {split} split have different label names")
    key = [[hashes[str(file.path)], file.key, columns] for file, columns in picked]
    document = json.dumps([_READER_VERSION, key])
    has_pair = any(columns.pair is not None for _, columns in picked)
    keys = ["text", "label", "pair"] if has_pair else ["text", "label"]
    try:
        dataset = datasets.Dataset.from_generator(
            lambda: _examples(split, picked, hashes),
            features=datasets.Features({key: datasets.Value("string") for key in keys}),
            fingerprint=hashlib.sha256(document.encode()).hexdigest()[:32],
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, SourceError):
            raise error.__cause__ from None
        raise SourceError(f"cannot read {files[0]}: {first_line(error.__cause__ or error)}") from error
    columns = SourceColumns("text", "label", "pair" if has_pair else None)
    return SplitTable(dataset, columns, encoded=True, class_names=names.pop())


def _examples(
    split: str, picked: Sequence[tuple[DataFile, SourceColumns]], hashes: Mapping[str, str]
) -> Iterator[dict[str, str | None]]:
    """The rows of files with these `hashes`; where they changed, an error at the end keeps nothing."""
    row = 0
    for file, columns in picked:
        for values in file.rows(columns):
            example = {
                "text": text_cell(values.get(columns.text), row, split),
                "label": label_cell(values.get(columns.label), row, split),
            }
            if columns.pair is not None:
                example["pair"] = text_cell(values.get(columns.pair), row, split)
            yield example
            row += 1
    require_unchanged(hashes, {path: content_hash(Path(path)) for path in hashes})
    if row == 0:
        raise SourceError(f"the {split} split has no rows: {picked[0][0].path} has none")


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
        raise SourceError(f"{name}: {lengths}: the lengths differ")
    if not columns["text"]:
        raise SourceError(f"the {name} split has no rows")
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
