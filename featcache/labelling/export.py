"""Labelled texts for training: a csv, jsonl or parquet file, or a folder of `datasets`.

Several labels of a text are a list, which training takes as such; a cell of a csv file has them joined.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.data.arrow_table import quiet_datasets
from featcache.errors import SourceError, UsageError
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.votes import CountedAnswers
from featcache.system.durable import explained, write_file

SEPARATOR = ";"  # between the labels of a text in a csv file


@dataclass(frozen=True)
class LabelledText:
    """A row that has labels, one or several; `split` is `train` or `validation`."""

    text: str
    labels: tuple[str, ...]
    split: str


def labelled_texts(texts: TextsToLabel, counted: CountedAnswers) -> list[LabelledText]:
    """The rows of the file of texts that have labels, in its order; equal texts share theirs.

    Texts on which as many people say one thing as another are left out. The reserved texts are the validation
    split, but for those with a label that no other text has: it can only be learned from them.
    """
    labelled = {row: labels for row, labels in counted.labels.items() if not texts.reserved[row]}
    learned = frozenset[str]().union(*labelled.values())
    found = []
    for text, row in texts.all_rows:
        if labels := counted.labels.get(row):
            kept = texts.reserved[row] and labels <= learned
            found.append(LabelledText(text, tuple(sorted(labels)), "validation" if kept else "train"))
    return found


def write_labelled(path: Path, rows: Sequence[LabelledText], *, multi_label: bool) -> None:
    """Write or replace a file with the columns text, label and split, by the ending of its name.

    Without an ending it is a folder as `datasets.load_from_disk` reads it, with one data set a split; such a
    folder must not exist.

    Args:
        multi_label: the labels of a text are a list, also where it has one.

    Raises:
        UsageError: another ending, the folder exists, or a cell of a csv file cannot have the labels.
        SourceError: there are no rows.
    """
    ending = path.suffix.lower()
    if ending not in ("", ".csv", ".jsonl", ".parquet"):
        raise UsageError(f"--export {path}: unknown ending", hint="use .csv, .jsonl, .parquet, or none")
    if not rows:
        raise SourceError("no text has a label yet", hint="label some first")
    columns: dict[str, Sequence[object]] = {
        "text": [row.text for row in rows],
        "label": [list(row.labels) if multi_label else row.labels[0] for row in rows],
        "split": [row.split for row in rows],
    }
    if ending == ".csv":
        held = io.StringIO()
        writer = csv.writer(held)
        joined = [_joined(path, row.labels) if multi_label else row.labels[0] for row in rows]
        writer.writerows([list(columns), *zip(columns["text"], joined, columns["split"], strict=True)])
        # Excel reads UTF-8 only after a byte order mark.
        write_file(path, b"\xef\xbb\xbf" + held.getvalue().encode())
    elif ending == ".jsonl":
        cells = zip(*columns.values(), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in cells)
        write_file(path, "".join(f"{line}\n" for line in lines).encode())
    elif ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), buffer)
        write_file(path, buffer.getvalue().to_pybytes())
    else:
        _write_folder(path, columns)


def _joined(path: Path, labels: Sequence[str]) -> str:
    if odd := [label for label in labels if SEPARATOR in label]:
        raise UsageError(
            f"--export {path}: the label {odd[0]!r} has a {SEPARATOR} in it, which is between labels there",
            hint="use .jsonl, .parquet, or no ending",
        )
    return SEPARATOR.join(labels)


def _write_folder(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    if path.exists():
        raise UsageError(f"--export {path}: it exists already", hint="give a new folder")
    from datasets import Dataset, DatasetDict

    parts, splits = {}, columns["split"]
    for split in sorted({str(one) for one in splits}):
        own = {
            name: [cell for cell, its in zip(columns[name], splits, strict=True) if its == split]
            for name in ("text", "label")
        }
        parts[split] = Dataset.from_dict(own)
    with explained(path), quiet_datasets():
        DatasetDict(parts).save_to_disk(str(path))
