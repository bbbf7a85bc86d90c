"""Labelled texts for training: a csv, jsonl or parquet file, or a folder of `datasets`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import SourceError, UsageError
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.votes import CountedAnswers
from featcache.system.durable import write_file

SEPARATOR = ";"  # between the labels of a text, where labels are one column


@dataclass(frozen=True)
class LabelledText:
    """A row that has labels; `split` is `validation` for reserved texts, else `train`."""

    text: str
    label: str
    split: str


def labelled_texts(texts: TextsToLabel, counted: CountedAnswers) -> list[LabelledText]:
    """The rows of the file of texts that have labels, in its order; equal texts share theirs.

    Texts on which as many people say one thing as another are left out.
    """
    found = []
    for text, row in texts.all_rows:
        if row in counted.labels:
            label = SEPARATOR.join(sorted(counted.labels[row]))
            found.append(LabelledText(text, label, "validation" if texts.reserved[row] else "train"))
    return found


def write_labelled(path: Path, rows: Sequence[LabelledText]) -> None:
    """Write or replace a file with the columns text, label and split, by the ending of its name.

    Without an ending it is a folder as `datasets.load_from_disk` reads it, with one data set a split; such a
    folder must not exist.

    Raises:
        UsageError: another ending, or the folder exists.
        SourceError: there are no rows.
    """
    ending = path.suffix.lower()
    if ending not in ("", ".csv", ".jsonl", ".parquet"):
        raise UsageError(f"--export {path}: unknown ending", hint="use .csv, .jsonl, .parquet, or none")
    if not rows:
        raise SourceError("no text has a label yet", hint="label some first")
    columns = {name: [getattr(row, name) for row in rows] for name in ("text", "label", "split")}
    if ending == ".csv":
        held = io.StringIO()
        writer = csv.writer(held)
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
        # Excel reads UTF-8 only after a byte order mark.
        write_file(path, b"\xef\xbb\xbf" + held.getvalue().encode())
    elif ending == ".jsonl":
        lines = (json.dumps(vars(row), ensure_ascii=False) for row in rows)
        write_file(path, "".join(f"{line}\n" for line in lines).encode())
    elif ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), buffer)
        write_file(path, buffer.getvalue().to_pybytes())
    else:
        _write_folder(path, rows)


def _write_folder(path: Path, rows: Sequence[LabelledText]) -> None:
    if path.exists():
        raise UsageError(f"--export {path}: it exists already", hint="give a new folder")
    from datasets import Dataset, DatasetDict

    parts = {}
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        parts[split] = Dataset.from_dict(
            {name: [getattr(row, name) for row in own] for name in ("text", "label")}
        )
    DatasetDict(parts).save_to_disk(str(path))
