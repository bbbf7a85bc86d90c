"""Columns, labels and rows that cannot be used: which are taken, and what the error says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featcache.data.split import describe_source, load_splits
from featcache.errors import SourceError
from featcache.settings import DataSettings
from tests.support.source_files import both, jsonl, rows_of, train, write, write_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")

# ---------------------------------------------------------------- columns


def test_pairs_by_their_usual_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Sentence1,Sentence2,label\na,b,1\nc,,0\n")
    split = train(path)
    assert (split.texts([0, 1]), split.pairs([0, 1])) == (["a", "c"], ["b", ""])
    assert next(split.batches()) == (["a", "c"], ["b", ""])
    assert train(path, text_column="sentence1").pairs([0]) is None
    assert train(path, pair_column="sentence2").texts([0]) == ["a"]


@pytest.mark.parametrize(
    ("header", "settings", "says", "flag"),
    [
        ("review,comment,label", {}, "more than one text column .*'review', 'comment'", "--text"),
        ("text,target,class", {}, "more than one label column", "--label-column"),
        ("foo,bar,label", {}, "no text column .*'foo', 'bar'", "--text-column"),
        ("text,b,label", {"pair_column": "c"}, "no column 'c'", "--pair-column"),
        ("text,b,label", {"text_column": "zz"}, "no column 'zz'", "--text-column"),
        (
            "text,b,label",
            {"label_column": "b", "text_column": "b"},
            "one column cannot",
            "--text-column",
        ),
    ],
)
def test_columns_that_cannot_be_found(
    tmp_path: Path, header: str, settings: dict[str, str], says: str, flag: str
) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        train(write(tmp_path / "a.csv", header + "\na,b,x\nc,d,z\n"), **settings)
    assert flag in (caught.value.hint or "")


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([10, 9, 10], None, {"9": 0, "10": 1}),
        (["10", "9", "9"], None, {"9": 0, "10": 1}),
        (["neg", "pos", "neg"], None, {"neg": 0, "pos": 1}),
        ([1.0, 0.0, 1.0], None, {"0": 0, "1": 1}),
        (["1.0", "0.0"], None, {"0": 0, "1": 1}),
        ([True, False], None, {"False": 0, "True": 1}),
        ([-1, 1], None, {"-1": 0, "1": 1}),
        ([1, 0], ("bad", "good"), {"bad": 0, "good": 1}),
        (["pos", "neg"], ("pos", "neg"), {"pos": 0, "neg": 1}),
        ([" pos", "pos", "neg "], None, {"neg": 0, "pos": 1}),
        (["123456789012345678901", "123456789012345678902"], None, None),
    ],
)
def test_label_names(tmp_path: Path, labels: list[Any], names: Any, expected: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", [f"t{i}" for i in range(len(labels))], labels)
    split = train(path, label_names=names)
    assert len(split.label_names) == 2
    if expected is not None:
        assert split.label_names == tuple(expected)
    assert len(set(split.labels)) == 2


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        ([0.5, 1.0], None, "label 0.5 in row 1 .* look like numbers"),
        (["1", "0.25"], None, "label 0.25 in row 2 .* look like numbers"),
        ([1, [1, 2]], None, "row 2 of validation is a list, that in row 1 of validation is not"),
        ([1, {"a": 1}], None, "label in row 2 of validation is a dict: {'a': 1}"),
        ([-1, -1], None, "has no labels"),
        ([None, None], None, "has no labels"),
        ([0, 2], ("a", "b"), "label 2 in row 2 .* has no name"),
        (["a", "c"], ("a", "b"), "label 'c' in row 2 .* not in --label-names"),
        ([0, None], None, "row 2 of validation has no label"),
        ([0, float("nan")], None, "row 2 of validation has no label"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: list[Any], names: Any, says: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", ["x", "y"], labels)
    with pytest.raises(SourceError, match=says):
        train(path, label_names=names)


def test_label_names_come_from_train(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ["a", "b", "c", "d"], ["pos", "neg", "mid", "mid"])
    write_rows(tmp_path / "test.csv", ["e", "f"], ["pos", "pos"])
    splits = both(tmp_path)
    assert splits["test"].label_names == ("mid", "neg", "pos")
    assert splits["test"].labels.tolist() == [2, 2]
    write_rows(tmp_path / "test.csv", ["e", "f"], ["pos", "odd"])
    with pytest.raises(SourceError, match="label 'odd' in row 2 of test never occurs in train"):
        both(tmp_path)
    write_rows(tmp_path / "train.csv", ["a", "b"], ["pos", "pos"])
    with pytest.raises(SourceError, match="all labels of train are the same: 'pos'"):
        both(tmp_path)


def test_rows_with_labels_unknown_to_train_can_be_left_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ["a", "b", "c", "d"], ["pos", "neg", "neg", "pos"])
    write_rows(tmp_path / "test.csv", ["e", "f", "", "h"], ["pos", "odd", "pos", "neg"])
    test = both(tmp_path, skip_bad_rows=True)["test"]
    assert rows_of(test) == [("e", "pos"), ("h", "neg")]
    assert (test.row_numbers.tolist(), test.skipped) == ([0, 3], 2)
    assert test.notes == (
        "left out 1 row without text or label: row 3 of test",
        "left out 1 row with a label that never occurs in train: row 2 of test",
    )
    write_rows(tmp_path / "test.csv", ["e"], ["odd"])
    with pytest.raises(SourceError, match="every row of test has a label that never occurs in train"):
        both(tmp_path, skip_bad_rows=True)


def test_class_label_names_are_kept(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = {"text": ["a", "b", "c", "d"], "label": [1, 0, 1, 0]}
    saved = datasets.Dataset.from_dict(table, features=kinds)
    hidden = datasets.Dataset.from_dict({"text": ["e"], "label": [-1]}, features=kinds)
    both_splits = datasets.DatasetDict({"train": saved, "dev": saved, "test": hidden})
    both_splits.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(str(tmp_path / "a.parquet"))
    data = DataSettings(dataset=str(tmp_path / "saved"))
    splits = load_splits(data, ["train", "validation"], seed=0)
    expected = [("a", "yes"), ("b", "no"), ("c", "yes"), ("d", "no")]
    assert rows_of(splits["validation"]) == rows_of(train(tmp_path / "a.parquet")) == expected
    assert splits["train"].notes == ()
    with pytest.raises(SourceError, match="test split has no labels"):
        load_splits(data, ["test"], seed=0)
    write(tmp_path / "saved" / "train" / "state.json", "{")
    with pytest.raises(SourceError, match="cannot read the saved dataset"):
        load_splits(data, ["train"], seed=0)
    write(tmp_path / "saved" / "dataset_dict.json", "[]")
    with pytest.raises(SourceError, match="cannot read the saved dataset"):
        describe_source(data, seed=0)


def test_a_saved_single_dataset_is_train(tmp_path: Path) -> None:
    import datasets

    rows: dict[str, list[Any]] = {
        "text": [f"t{i}" for i in range(20)],
        "label": ["a", "b"] * 10,
        "n": list(range(20)),
    }
    # A shuffled dataset keeps its order in a separate table of indices.
    datasets.Dataset.from_dict(rows).shuffle(seed=1).save_to_disk(str(tmp_path / "s"))
    data = DataSettings(dataset=str(tmp_path / "s"))
    splits = load_splits(data, ["train", "validation"], seed=0)
    found = {**dict(rows_of(splits["train"])), **dict(rows_of(splits["validation"]))}
    assert found == dict(zip(rows["text"], rows["label"], strict=True))
    with pytest.raises(SourceError, match="its splits are: train"):
        load_splits(data, ["test"], seed=0)
    with pytest.raises(SourceError, match="holds int64, not text"):
        load_splits(DataSettings(dataset=str(tmp_path / "s"), text_column="n"), ["train"], seed=0)


# ---------------------------------------------------------------- rows that cannot be used


@pytest.mark.parametrize(
    "line",
    [
        {"text": None, "label": 1},
        {"label": 1},
        {"text": "", "label": 1},
        {"text": " \u3000\n", "label": 1},
        {"text": "x", "label": None},
        {"text": "x", "label": " "},
        {"text": "\ud800", "label": 1},
    ],
)
def test_bad_rows_are_refused_or_left_out(tmp_path: Path, line: dict[str, Any]) -> None:
    good = [{"text": f"t{i}", "label": i % 2} for i in range(4)]
    path = write(tmp_path / "a.jsonl", jsonl(*good, line, line))
    with pytest.raises(SourceError, match=r"row 5 of validation .* first of 2") as caught:
        train(path)
    assert "--skip-bad-rows" in (caught.value.hint or "")
    write(path, jsonl(good[0], line, *good[1:], line))
    split = train(path, skip_bad_rows=True)
    assert split.texts(slice(None)) == ["t0", "t1", "t2", "t3"]
    assert split.row_numbers.tolist() == [0, 2, 3, 4]
    assert split.skipped == 2
    assert split.notes == ("left out 2 rows without text or label: rows 2, 6 of validation",)


def test_empty_csv_fields_and_numbers_as_texts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="row 2 of validation"):
        train(write(tmp_path / "a.csv", "text,label\na,1\n,0\n"))
    with pytest.raises(SourceError, match="row 2 of validation: the text is a int"):
        train(write(tmp_path / "a.jsonl", jsonl({"text": "a", "label": 1}, {"text": 5, "label": 0})))
