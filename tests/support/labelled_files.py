"""Files of rows to be labelled, and what `predict_file` makes of them."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featcache.data.formats.lines import ReadLimits
from featcache.data.formats.open import kind_of, open_rows
from featcache.data.formats.write import OutputForm
from featcache.prediction.file import LabelledFile, predict_file
from featcache.prediction.predictor import Predictor
from tests.support.source_files import write
from tests.support.stock import WORDS
from tests.support.tiny_predictor import NAMES

ADDED = ["prediction", "probability", *(f"probability:{name}" for name in NAMES), "truncated"]
KINDS = ("csv", "tsv", "json", "jsonl", "parquet")
SMALL = ReadLimits(batch_rows=16)


def texts_of(count: int, seed: int = 0, most: int = 30) -> list[str]:
    """Texts of 1 to `most` words of the tiny vocabulary."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for _ in range(count)]


def made_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with an id, a text, and a note that needs quoting."""
    odd = ['a "quoted", cell', "tab?", "第二 列", "", " kept "]
    return [
        {"id": str(n), "text": text, "note": odd[n % len(odd)]}
        for n, text in enumerate(texts_of(count, seed))
    ]


def write_kind(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's ending."""
    kind = kind_of(path)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif kind == "json":
        write(path, json.dumps(rows, ensure_ascii=False, indent=len(rows) % 3))
    elif kind == "txt":
        write(path, "".join(row["text"] + "\n" for row in rows))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read_kind(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, with its values as that format has them."""
    kind = kind_of(path)
    if kind == "parquet":
        return pq.read_table(path).to_pylist()
    if kind == "json" and path.read_text(encoding="utf-8").startswith("["):
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if kind in ("json", "jsonl"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if kind == "tsv" else ","))


def label(predictor: Predictor, source: Path, target: Path, **options: Any) -> LabelledFile:
    """Label the file `source` into `target`, with options of `open_rows` and `predict_file`."""
    columns = options.pop("columns", None)
    header = options.pop("header", True)
    limits, quotes = options.pop("limits", None), options.pop("quotes", None)
    kind = kind_of(source)
    assert kind is not None
    rows = open_rows(source, kind, columns, header=header, limits=limits, quotes=quotes)
    form = OutputForm(kind_of(target) or "", options.pop("prefix", ""), options.pop("raw_cells", False))
    return predict_file(predictor, rows, target, form, **options)


def check_answers(found: list[dict[str, Any]], predictor: Predictor, texts: list[str]) -> None:
    """Check that the output has the labels that the predictor gives for the same texts."""
    expected = predictor.predict(texts)
    for row, one in zip(found, expected, strict=True):
        shares = [float(row[f"probability:{name}"]) for name in NAMES]
        np.testing.assert_allclose(shares, list(one.probabilities.values()), rtol=0, atol=2e-5)
        assert row["prediction"] == one.label
        assert float(row["probability"]) == pytest.approx(one.probability, abs=2e-5)
        assert str(row["truncated"]).lower() == str(one.truncated).lower()
