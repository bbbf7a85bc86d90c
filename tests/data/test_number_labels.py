"""Labels that are numbers: read from every format, and refused by row and value where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.data.split import describe_source, from_texts, load_splits
from featcache.errors import SourceError, UsageError
from featcache.fingerprint import LabelsPart
from featcache.settings import DataSettings
from tests.support.source_files import train, write, write_rows

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\na,1.5\nb, -2 \nc,3e2\n"),
        ("a.tsv", "text\tlabel\na\t1.5\nb\t-2\nc\t300\n"),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n{"text": "b", "label": "-2"}\n{"text": "c", "label": 300}'),
        ("a.json", '[{"text":"a","label":1.5},{"text":"b","label":-2},{"text":"c","label":300.0}]'),
    ],
)
def test_numbers_of_every_format(tmp_path: Path, name: str, content: str) -> None:
    split = train(write(tmp_path / name, content), task="regression")
    assert split.labels.dtype == np.float64
    assert (split.labels.tolist(), split.label_names) == ([1.5, -2.0, 300.0], ())
    assert split.texts(slice(None)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("", "row 2 of validation has no label"),
        ("  ", "row 2 of validation has no label"),
        ("four", "row 2 of validation has the label 'four', which is no number"),
        ("3,5", "row 2 of validation has the label '3,5', which is no number"),
        ("1_000", "row 2 of validation has the label '1_000', which is no number"),
        ("NaN", r"row 2 of validation has the label 'NaN', which is no number \(NaN\)"),
        ("-inf", "row 2 of validation has the label '-inf', which is not finite"),
        ("1e999", "row 2 of validation has the label '1e999', which is beyond 1e"),
        ("1e31", "row 2 of validation has the label '1e31', which is beyond 1e"),
        (None, "row 2 of validation has no label"),
        (float("nan"), r"row 2 of validation has the label nan, which is no number \(NaN\)"),
        (float("inf"), "row 2 of validation has the label inf, which is not finite"),
        (10**400, "row 2 of validation has the label 1000.*, which is beyond 1e"),
        (True, "row 2 of validation has the label True, which is no number"),
        ([1.0], r"row 2 of validation has the label \[1.0\], which is no number"),
    ],
)
def test_a_row_without_a_number_is_named_with_its_value(tmp_path: Path, label: Any, says: str) -> None:
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": label}, {"text": "c", "label": 2}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SourceError, match=says) as caught:
        train(path, task="regression")
    assert "--skip-bad-rows" in (caught.value.hint or "")
    kept = train(path, task="regression", skip_bad_rows=True)
    assert (kept.labels.tolist(), kept.skipped, kept.row_numbers.tolist()) == ([1.5, 2.0], 1, [0, 2])


def test_the_first_bad_row_is_named_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1.5\nb,x\nc,\nd,y\n")
    with pytest.raises(SourceError, match=r"row 2 .* the label .x., .* the first of 3 rows"):
        train(path, task="regression")


def test_labels_that_do_not_differ_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,2.50\nb,2.5\n")
    with pytest.raises(SourceError, match=r"all labels of train are the same: 2\.5"):
        load_splits(DataSettings(data_files={"train": str(path)}, task="regression"), ["train"], seed=0)


def test_labels_that_look_like_numbers_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,2.5\nc,1.0\n")
    with pytest.raises(SourceError, match=r"label 2\.5 in row 2 .* look like numbers") as caught:
        train(path)
    assert "--task regression" in (caught.value.hint or "") and "--task class" in (caught.value.hint or "")
    split = train(path, task="classification")
    assert [split.label_names[label] for label in split.labels] == ["1", "2.5", "1"]


def test_whole_numbers_are_classes_unless_they_are_called_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,3\nc,1.0\n")
    assert train(path).label_names == ("1", "3")
    assert train(path, task="regression").labels.tolist() == [1.0, 3.0, 1.0]


def test_an_amount_that_train_does_not_have_is_asked_about(tmp_path: Path) -> None:
    parts = {"train": range(25), "validation": range(26), "test": range(25)}
    files = {
        split: str(write_rows(tmp_path / f"{split}.jsonl", [f"{split}{n}" for n in some], list(some)))
        for split, some in parts.items()
    }
    with pytest.raises(SourceError, match="'25' in row 26 of validation never occurs in train") as caught:
        load_splits(DataSettings(data_files=files), ["train", "validation"], seed=0)
    assert "--task regression" in (caught.value.hint or "")
    numbers = load_splits(DataSettings(data_files=files, task="regression"), ["validation"], seed=0)
    assert numbers["validation"].labels.max() == 25


@pytest.mark.parametrize(
    ("setting", "value"),
    [("label_names", ("a", "b")), ("label_columns", ("a", "b")), ("label_separator", ";")],
)
def test_settings_of_classes_are_refused(tmp_path: Path, setting: str, value: Any) -> None:
    path = write(tmp_path / "a.csv", "text,label,a,b\nx,1.5,0,1\ny,2,1,0\n")
    with pytest.raises(UsageError, match=r"--label-.* is about classes"):
        train(path, task="regression", **{setting: value})


def test_held_out_rows_are_drawn_at_random(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{n},{n / 7}\n" for n in range(100)))
    data = DataSettings(data_files={"train": str(path)}, task="regression", validation_share=0.2)
    splits = load_splits(data, ["train", "validation"], seed=3)
    assert len(splits["validation"]) == 20
    assert "at random, seed 3" in splits["train"].notes[0]
    both = np.concatenate([splits[name].labels for name in ("train", "validation")])
    assert sorted(both.tolist()) == [n / 7 for n in range(100)]


def test_the_task_is_a_part_of_the_request_only_where_it_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\nb,2\n")
    told = describe_source(DataSettings(data_files={"train": str(path)}, task="regression"), seed=0)
    plain = describe_source(DataSettings(data_files={"train": str(path)}), seed=0)
    assert told is not None and plain is not None
    assert told.pop("task") == "regression" and told == plain


def test_numbers_in_memory() -> None:
    split = from_texts("train", ["a", "b"], [1, 2.5], task="regression")
    assert split.labels.tolist() == [1.0, 2.5]


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20))
def test_the_chain_of_numbers_is_of_their_values(numbers: list[float]) -> None:
    """Equal numbers have equal chains, others do not; classes of the same values have another kind."""
    labels = np.array(numbers) + 0.0
    part = LabelsPart.of(labels, ())
    assert part == LabelsPart.of(labels[::1].copy(), ()) and part.kind == "regression"
    changed = labels.copy()
    changed[0] = np.nextafter(changed[0], np.inf)
    assert LabelsPart.of(changed, ()).chain != part.chain
