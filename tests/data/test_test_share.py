"""A test split that the source does not have is held out of train by a hash of each text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.data.holdout import parts_by_key
from featcache.data.split import describe_source, load_splits
from featcache.data.test_split import splits_for_training
from featcache.errors import SourceError
from featcache.settings import DataSettings
from tests.support.cli_tools import write_rows

ALL = ("train", "validation", "test")
KEYS = st.lists(st.integers(0, 30), min_size=3, max_size=200)


@given(KEYS, st.integers(1, 4), st.integers(0, 2**40))
def test_rows_of_one_key_are_in_one_part_and_classes_in_all(keys: list[int], classes: int, seed: int) -> None:
    keys_, labels = np.array(keys, np.uint64), np.array(keys) % classes
    parts = parts_by_key(labels, keys_, [0.1, 0.2], seed)
    assert all(len(set(parts[keys_ == key].tolist())) == 1 for key in set(keys))
    for label in set(labels.tolist()):
        different = len(set(keys_[labels == label].tolist()))
        found = set(parts[labels == label].tolist())
        assert found >= set(range(min(different, 3)))


def test_shares_are_kept_and_added_rows_move_none() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    labels = np.arange(20_000) % 2
    parts = parts_by_key(labels, keys, [0.1, 0.2], 7)
    assert np.bincount(parts) / 20_000 == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    np.testing.assert_array_equal(parts_by_key(labels[:5000], keys[:5000], [0.1, 0.2], 7), parts[:5000])
    assert (parts_by_key(labels, keys, [0.1, 0.2], 8) != parts).any()


def rows(count: int) -> list[tuple[str, str]]:
    return [(f"text {number}", "good" if number % 3 else "bad") for number in range(count)]


def source(tmp_path: Path, **more: Any) -> DataSettings:
    return DataSettings(dataset=str(tmp_path / "all.jsonl"), test_share=0.1, **more)


def test_one_file_gives_three_splits(tmp_path: Path) -> None:
    data = source(tmp_path)
    write_rows(tmp_path / "all.jsonl", [*rows(300), ("ＴＥＸＴ 5", "good")])  # text 5 in full width
    assert splits_for_training(data) == ALL
    found = load_splits(data, ALL, seed=0)
    sizes = {name: len(split) for name, split in found.items()}
    assert sum(sizes.values()) == 301 and sizes["train"] > 200 and min(sizes.values()) > 15
    where = {text: name for name, split in found.items() for text in split.texts(slice(None))}
    assert len(where) == 301 and where["text 5"] == where["ＴＥＸＴ 5"]
    assert "held out by a hash of each text" in found["train"].notes[-1]
    np.testing.assert_array_equal(
        load_splits(data, ["test"], seed=0)["test"].row_numbers, found["test"].row_numbers
    )
    write_rows(tmp_path / "all.jsonl", [*rows(400), ("ＴＥＸＴ 5", "good")])
    later = load_splits(data, ALL, seed=0)
    assert set(found["test"].texts(slice(None))) <= set(later["test"].texts(slice(None)))
    described = [describe_source(data, seed=seed) for seed in (0, 1)]
    assert described[0] != described[1]  # the seed counts


def test_numbers_and_several_labels_are_held_out_too(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    write_rows(path, [(text, str(number / 7)) for number, (text, _) in enumerate(rows(60))])
    assert set(load_splits(source(tmp_path, task="regression"), ALL, seed=0)) == set(ALL)
    write_rows(path, [(text, "a;b" if number % 2 else "b") for number, (text, _) in enumerate(rows(60))])
    found = load_splits(source(tmp_path, label_separator=";"), ALL, seed=0)
    assert all(split.labels.sum(axis=0).min() > 0 for split in found.values())


def test_a_column_of_numbers_of_rows_is_not_taken_for_labels(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [(f"text {number}", f"id{number}") for number in range(30)])
    with pytest.raises(SourceError, match="none is left") as caught:
        load_splits(DataSettings(dataset=str(path), test_share=0.1), ALL, seed=0)
    assert "--label-column" in str(caught.value.hint)


def test_too_few_different_texts_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "all.jsonl", [("same", "good")] * 9 + [("same", "bad")] * 9)
    with pytest.raises(SourceError, match="too few different texts"):
        load_splits(source(tmp_path), ALL, seed=0)


def test_without_the_share_the_error_names_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "all.jsonl", rows(30))
    data = DataSettings(dataset=str(tmp_path / "all.jsonl"))
    assert splits_for_training(data) == ("train", "validation")
    with pytest.raises(SourceError, match="no test split") as caught:
        load_splits(data, ALL, seed=0)
    assert "--test-share 0.1" in str(caught.value.hint)


def test_a_split_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl", rows(60))
    data = DataSettings(dataset=str(tmp_path), test_share=0.3)
    sizes = {name: len(split) for name, split in load_splits(data, ALL, seed=0).items()}
    assert sizes == {"train": 54, "validation": 6, "test": 60}
