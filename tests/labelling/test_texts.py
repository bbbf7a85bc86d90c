from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from featcache.errors import SourceError, UsageError
from featcache.fingerprint import row_hash
from featcache.labelling.answers import AnswerLine
from featcache.labelling.export import SEPARATOR, LabelledText, labelled_texts, write_labelled
from featcache.labelling.texts import TextsToLabel, read_texts
from featcache.labelling.votes import CountedAnswers
from featcache.settings import DataSettings


def test_texts_are_read_once_each_and_labels_need_not_be_there(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("id,text\n1,Good room\n2,good  ROOM\n3,房间很干净\n4,\n", encoding="utf-8")
    found = read_texts(path, DataSettings())
    assert found.texts == ("Good room", "房间很干净")
    assert found.hashes == tuple(row_hash(text).hex() for text in found.texts)
    assert found.all_rows == (("Good room", 0), ("good  ROOM", 0), ("房间很干净", 1))
    assert any("1 texts are repeated" in note for note in found.notes)
    assert any("1 rows cannot be used" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\nonly one\n"),
        ("a.csv", ""),
        ("a.csv", "number,other\n1,2\n"),
        ("a.doc", "text\na\nb\n"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError):
        read_texts(path, DataSettings())
    with pytest.raises(SourceError, match="no file"):
        read_texts(tmp_path / "missing.csv", DataSettings())


def labelled() -> tuple[TextsToLabel, CountedAnswers]:
    texts = TextsToLabel.of(['=1+1, "quoted"', "two\nlines", "TWO lines", "房间", "none"])
    lines = [
        AnswerLine(answer="labels", text=texts.hashes[row], labels=labels, by="a", time="")
        for row, labels in enumerate([("good",), ("bad", "a"), ("好评",)])
    ]
    return texts, CountedAnswers.of(texts, lines)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ""])
def test_what_was_labelled_is_exported_with_equal_texts(tmp_path: Path, ending: str) -> None:
    texts, counted = labelled()
    rows = labelled_texts(texts, counted)
    wanted = [
        ('=1+1, "quoted"', ["good"]), ("two\nlines", ["a", "bad"]), ("TWO lines", ["a", "bad"]),
        ("房间", ["好评"]),
    ]  # fmt: skip
    path = tmp_path / f"labelled{ending}"
    write_labelled(path, rows, multi_label=True)
    if ending == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = [(row["text"], row["label"].split(SEPARATOR)) for row in csv.DictReader(file)]
    elif ending == ".jsonl":
        read = [(one["text"], one["label"]) for one in map(json.loads, path.read_text("utf-8").splitlines())]
    elif ending == ".parquet":
        read = [(row["text"], row["label"]) for row in pq.read_table(path).to_pylist()]
    else:
        from datasets import load_from_disk

        parts = load_from_disk(str(path))
        read = [(row["text"], row["label"]) for part in parts.values() for row in part]
        with pytest.raises(UsageError, match="exists"):
            write_labelled(path, rows, multi_label=True)
    assert sorted(read) == sorted(wanted)


def test_reserved_texts_are_validation_unless_only_they_have_a_label() -> None:
    texts = TextsToLabel.of([f"text {number}" for number in range(60)])
    reserved = np.flatnonzero(texts.reserved).tolist()
    rare = reserved[0]
    lines = [
        AnswerLine(
            answer="labels", text=one, labels=("rare" if row == rare else "often",), by="a", time=""
        )
        for row, one in enumerate(texts.hashes)
    ]  # fmt: skip
    splits = [row.split for row in labelled_texts(texts, CountedAnswers.of(texts, lines))]
    assert [row for row, split in enumerate(splits) if split == "validation"] == reserved[1:]


def test_an_export_of_nothing_or_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no text has a label"):
        write_labelled(tmp_path / "a.csv", [], multi_label=False)
    rows = labelled_texts(*labelled())
    with pytest.raises(UsageError, match="unknown ending"):
        write_labelled(tmp_path / "a.xlsx", rows, multi_label=True)
    with pytest.raises(UsageError, match="'a;b' has a ;"):
        write_labelled(tmp_path / "a.csv", [LabelledText("x", ("a;b",), "train")], multi_label=True)
    write_labelled(tmp_path / "a.csv", [LabelledText("x", ("a;b",), "train")], multi_label=False)
