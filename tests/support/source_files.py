"""Small source files on disk, and what `load_splits` reads from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from featcache.data.split import Split, load_splits
from featcache.settings import DataSettings


def write(path: Path, content: str | bytes) -> Path:
    """Write a file and its folders; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def train(path: Path, **settings: Any) -> Split:
    """The rows of one file, as validation so that none are held out and one class will do."""
    data = DataSettings(data_files={"dev": str(path)}, **settings)
    return load_splits(data, ["validation"], seed=0)["validation"]


def both(folder: Path, **settings: Any) -> dict[str, Split]:
    """The splits train and test of the files in a folder."""
    return load_splits(DataSettings(dataset=str(folder), **settings), ["train", "test"], seed=0)


def jsonl(*rows: object) -> str:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(split: Split) -> list[tuple[str, str]]:
    """The texts and label names of a split."""
    texts = split.texts(slice(None))
    return [(text, split.label_names[label]) for text, label in zip(texts, split.labels, strict=True)]


def write_rows(path: Path, texts: list[str], labels: list[Any]) -> Path:
    """Write a table in the format that the ending of `path` names."""
    kind = path.name.split(".")[1]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    elif kind == "jsonl":
        write(path, jsonl(*({"text": t, "label": y} for t, y in zip(texts, labels, strict=True))))
    elif kind == "json":
        write(
            path,
            json.dumps([{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)], indent=1),
        )
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return path
