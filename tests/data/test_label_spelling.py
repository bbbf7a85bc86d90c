"""Labels that differ in their spelling alone: asked about, merged or kept; `1.0` and `1` are one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from featcache.data.split import Split, count_labels, describe_source, load_splits
from featcache.errors import SourceError
from featcache.settings import DataSettings
from tests.support.source_files import both, jsonl, rows_of, train, write

pytestmark = [pytest.mark.usefixtures("arrow_cache"), pytest.mark.bad_input]


def labelled(folder: Path, train_labels: Sequence[Any], test_labels: Sequence[Any]) -> DataSettings:
    """Files of train, of validation with the same labels, and of test."""
    for split, labels in (("train", train_labels), ("validation", train_labels), ("test", test_labels)):
        write(folder / f"{split}.jsonl", jsonl(*({"text": "t", "label": label} for label in labels)))
    return DataSettings(dataset=str(folder))


def names(split: Split) -> list[str]:
    return [label for _, label in rows_of(split)]


def test_similar_labels_are_asked_about(tmp_path: Path) -> None:
    labelled(tmp_path, ["positive", "positive", "negative"], [" Positive ", "Ｎegative"])
    with pytest.raises(SourceError, match=r"probably one.*'positive' .2. and 'Positive' .1.") as caught:
        both(tmp_path)
    assert "'negative' (1) and 'Ｎegative' (1)" in caught.value.what
    assert "--similar-labels merge" in (caught.value.hint or "")


def test_similar_labels_are_merged_or_kept(tmp_path: Path) -> None:
    data = labelled(tmp_path, ["Good", "good", "bad", "good"], ["GOOD", "bad"])
    merged = both(tmp_path, similar_labels="merge")
    assert names(merged["train"]) == ["good", "good", "bad", "good"]
    assert names(merged["test"]) == ["good", "bad"]
    assert merged["train"].label_names == merged["test"].label_names == ("bad", "good")
    assert "merged labels: 'Good' into 'good'" in merged["train"].notes
    labelled(tmp_path, ["Good", "good", "bad"], ["bad"])
    assert both(tmp_path, similar_labels="keep")["train"].label_names == ("Good", "bad", "good")
    asked, kept, made_one = (
        describe_source(DataSettings(dataset=data.dataset, similar_labels=how), seed=0)
        for how in ("ask", "keep", "merge")
    )
    assert asked == kept != made_one  # merging alone makes other labels


def test_a_row_with_both_spellings_has_the_label_once(tmp_path: Path) -> None:
    labelled(tmp_path, [["A", "a"], ["b"], ["a", "b"]], [["A"]])
    found = both(tmp_path, similar_labels="merge")
    assert found["train"].label_names == ("A", "b")
    assert found["train"].labels.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_whole_numbers_are_one_label_however_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1.0\nb,1\nc,0\nd,0.0\n")
    assert names(train(path)) == ["1", "1", "0", "0"]
    path = write(tmp_path / "b.csv", "text,label\na,1.0\nb,1\nc,other\nd,2.0\n")
    assert names(train(path)) == ["1", "1", "other", "2.0"]


def test_hidden_labels_name_the_way_out(tmp_path: Path) -> None:
    data = labelled(tmp_path, [0, 1] * 10, [-1, -1])
    write(tmp_path / "validation.jsonl", jsonl(*({"text": f"v{n}", "label": n % 2} for n in range(4))))
    with pytest.raises(SourceError, match=r"test split has no labels .*all are -1") as caught:
        load_splits(data, ["train", "test"], seed=0)
    assert "--test-split validation" in (caught.value.hint or "")
    other = DataSettings(dataset=data.dataset, test_split="dev")
    splits = load_splits(other, ["train", "validation", "test"], seed=0)
    assert splits["test"].texts(slice(None)) == ["v0", "v1", "v2", "v3"]
    assert (len(splits["train"]), len(splits["validation"])) == (18, 2)
    assert "validation_share" in (describe_source(other, seed=0) or {})
    with pytest.raises(SourceError, match="no test split"):
        load_splits(DataSettings(dataset=data.dataset, test_split="gone"), ["test"], seed=0)


def test_labels_are_counted(tmp_path: Path) -> None:
    found = both(tmp_path) if labelled(tmp_path, ["a", "b", "a"], ["b"]) else {}
    assert count_labels(found["train"].labels, found["train"].label_names) == {"a": 2, "b": 1}
    assert count_labels(found["test"].labels, found["test"].label_names) == {"a": 0, "b": 1}
