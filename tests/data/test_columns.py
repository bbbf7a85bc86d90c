"""Which columns are read, what is said of it, and how several make one text or one list of labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from featcache.data.columns import pick_columns, pick_text_columns
from featcache.data.formats.open import kind_of, open_rows
from featcache.data.split import load_splits
from featcache.errors import SourceError
from featcache.fingerprint import row_hashes
from featcache.settings import DataSettings
from tests.support.source_files import rows_of, train, write

pytestmark = pytest.mark.usefixtures("arrow_cache")

TOXIC = ("toxic", "severe_toxic", "obscene")


def table(path: Path, header: Sequence[str], *rows: Sequence[str | None]) -> Path:
    """A csv file, or JSON lines where the name ends so."""
    if path.suffix == ".jsonl":
        return write(path, "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("评论,情感", "评论", "情感"),
        ("id,标题,内容,类别", "内容", "类别"),
        ("标题,分类", "标题", "分类"),
        ("正文,是否好评,时间", "正文", "是否好评"),
        ("评价,评分", "评价", "评分"),
        ("id,comment_text,rating", "comment_text", "rating"),
        ("title,正文,label", "title", "label"),  # as before there were these names
        ("cat,label,review", "review", "label"),
    ],
)
def test_usual_names(header: str, text: str, label: str) -> None:
    columns = header.split(",")
    picked = pick_columns(columns, DataSettings(), "a file")
    assert (picked.text, picked.label, picked.pair) == ((text,), (label,), None)
    assert pick_text_columns(columns, DataSettings(), "a file").text == (text,)


def test_two_questions_are_two_labels() -> None:
    with pytest.raises(SourceError, match=r"more than one label column .*'是否好评', '是否推荐'") as caught:
        pick_columns(["评论", "是否好评", "是否推荐"], DataSettings(), "a file")
    assert caught.value.hint is not None and "--label-columns A,B,C" in caught.value.hint


def test_what_is_read_and_what_is_not_is_said(tmp_path: Path) -> None:
    names, row = ("title", "body", "stars", "label"), ("a", "b", "5", "1")
    path = table(tmp_path / "dev.csv", names, row)
    assert train(path).read_as == ("text: body; label: label; not read: title, stars",)
    joined = train(path, text_column="title,body").read_as
    assert joined == ("text: title + body; label: label; not read: stars",)
    pair = train(path, text_column="title", pair_column="body").read_as
    assert pair == ("text: title; second text: body; label: label; not read: stars",)
    assert open_rows(path, "csv").notes == ("text: body; not read: title, stars, label",)
    header = ["text", "label", *map(str, range(99))]
    wide = train(table(tmp_path / "wide.csv", header, ["a", "1", *["x"] * 99]))
    assert wide.read_as[0].endswith("18, 19, and 79 more")


@pytest.mark.parametrize("name", ["dev.csv", "dev.jsonl"])
def test_joined_columns_are_one_text(name: str, tmp_path: Path) -> None:
    """Blank parts are left out; training and prediction make the same texts."""
    rows = [("t1", "b1", "1"), ("", "b2", "0"), ("t3", "", "1"), ("", " ", "0")]
    path = table(tmp_path / name, ("title", "body", "label"), *rows)
    split = train(path, text_column="Title, body", skip_bad_rows=True)
    assert split.texts(slice(None)) == ["t1\nb1", "b2", "t3"]
    opened = open_rows(path, kind_of(path) or "", DataSettings(text_column="title,body"))
    found = [row for batch in opened.batches for row in batch.rows]
    assert opened.text == "title,body"
    assert [row.text for row in found] == ["t1\nb1", "b2", "t3", ""]
    assert found[3].problem == "column 'title,body' is empty"
    assert np.array_equal(row_hashes(split.texts(slice(None))), row_hashes([row.text for row in found[:3]]))


def test_a_column_whose_name_has_a_comma(tmp_path: Path) -> None:
    path = table(tmp_path / "dev.csv", ("title,body", "title", "label"), ("whole", "part", "1"))
    assert train(path, text_column="title,body").texts([0]) == ["whole"]


def test_columns_of_zero_and_one_are_labels(tmp_path: Path) -> None:
    rows = [("a", "1", "0", "1"), ("b", "0", "0", "0"), ("c", "1.0", "True", "0.0")]
    path = table(tmp_path / "dev.csv", ("comment_text", *TOXIC), *rows)
    split = train(path, label_columns=TOXIC)
    assert split.label_names == TOXIC
    assert split.labels.tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert split.read_as == ("text: comment_text; labels: toxic, severe_toxic, obscene",)
    turned = train(path, label_columns=("obscene", "toxic"), label_names=("粗俗", "恶意"))
    assert (turned.label_names, turned.labels.tolist()) == (("粗俗", "恶意"), [[1, 1], [0, 0], [0, 1]])
    with pytest.raises(SourceError, match="no label column found") as caught:
        train(path)
    assert "--label-columns" in (caught.value.hint or "")


def test_a_flag_that_is_hidden_or_no_flag(tmp_path: Path) -> None:
    path = table(tmp_path / "dev.csv", ("text", *TOXIC), ("a", "1", "0", "0"), ("b", "-1", "-1", "-1"))
    with pytest.raises(SourceError, match="row 2 of validation has no label"):
        train(path, label_columns=TOXIC)
    assert len(train(path, label_columns=TOXIC, skip_bad_rows=True)) == 1
    path = table(tmp_path / "odd.csv", ("text", *TOXIC), ("a", "1", "0", "0.3"))
    with pytest.raises(SourceError, match=r"column 'obscene' has '0\.3': .* 0 or 1"):
        train(path, label_columns=TOXIC)
    with pytest.raises(SourceError, match="no column 'threat'"):
        train(path, label_columns=("toxic", "threat"))


def test_columns_of_a_saved_dataset(tmp_path: Path) -> None:
    """Texts are joined and flags are read as in files, also where labels are classes."""
    kinds = {name: datasets.Value("string") for name in ("title", "body")}
    classes = datasets.ClassLabel(names=["差评", "好评"])
    features = datasets.Features(kinds | {"toxic": datasets.Value("int64"), "label": classes})
    rows = {"title": ["t1", None], "body": ["b1", "b2"], "toxic": [1, 0], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    data = DataSettings(dataset=str(tmp_path / "saved"), text_column="title,body", test_split="train")
    split = load_splits(data, ["test"], seed=0)["test"]
    assert rows_of(split) == [("t1\nb1", "好评"), ("b2", "差评")]
    flags = replace(data, text_column="body", label_columns=("toxic",))
    found = load_splits(flags, ["test"], seed=0)["test"]
    assert (found.label_names, found.labels.tolist()) == (("toxic",), [[1], [0]])
