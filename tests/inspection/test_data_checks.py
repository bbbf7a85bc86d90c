"""The checks of the data: what each finds in rows where it is planted, and that clean rows are all good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.evaluation.leaks import EXACT
from featcache.evaluation.metrics import ClassScore
from featcache.inspection.data_checks import DataCheck, RowsToCheck, data_checks
from featcache.runs.record import RunRecord, SplitScores

NAMES = ("bad", "good")


def rows(keys: Any, labels: Any = None, **more: Any) -> RowsToCheck:
    """Rows with these keys, their labels 0 and 1 in turn by default."""
    found = np.asarray(keys, np.uint64)
    own = found.astype(np.int64) % 2 if labels is None else np.asarray(labels)
    return RowsToCheck(keys=found, labels=own, **({"truncated": 0, "max_length": 128} | more))


def clean() -> dict[str, RowsToCheck]:
    """Splits of 100, 20 and 20 rows without any fault."""
    return {
        "train": rows(range(100), unknown_tokens=0.0),
        "validation": rows(range(100, 120), unknown_tokens=0.0),
        "test": rows(range(120, 140), unknown_tokens=0.0),
    }


def by_name(splits: dict[str, RowsToCheck], names: Any = NAMES, **more: Any) -> dict[str, DataCheck]:
    return {check.name: check for check in data_checks(splits, names, **more)}


def record(*recalls: tuple[str, float, int]) -> RunRecord:
    lines = tuple(ClassScore(name, recall, recall, recall, support) for name, recall, support in recalls)
    return RunRecord(
        run="linear-1", head="linear", view="last/cls", fingerprint="0", created="", seconds=0.0, history=(),
        metrics={}, scores={"test": SplitScores(lines)},
    )  # fmt: skip


def test_clean_rows_are_good_and_each_check_says_what_it_looked_at() -> None:
    found = by_name(clean(), record=record(("bad", 0.9, 10), ("good", 0.8, 10)))
    assert list(found) == [
        "leaked rows", "duplicates", "conflicting labels", "label balance", "similar labels",
        "labels never predicted", "truncated texts", "unknown tokens",
    ]  # fmt: skip
    assert {check.state for check in found.values()} == {"good"}
    assert all(check.sentence and not check.hint for check in found.values())


def test_a_test_split_that_is_train_is_bad_and_says_so() -> None:
    splits = clean() | {"test": rows(range(100))}
    check = by_name(splits)["leaked rows"]
    assert check.state == "bad" and "every test row" in check.sentence
    assert "says nothing about new texts" in check.sentence and "one file" in check.hint


def test_a_few_leaked_rows_are_worth_a_look() -> None:
    splits = clean() | {"test": rows([5, *range(200, 299)])}
    check = by_name(splits, rule=EXACT)["leaked rows"]
    assert check.state == "look" and "1 of 100 test rows (1.0 %)" in check.sentence
    assert "validation" not in check.sentence and "compared exactly" in check.sentence


@pytest.mark.parametrize(("repeats", "state"), [(0, "good"), (1, "look"), (30, "bad")])
def test_repeated_texts_are_counted_in_their_split(repeats: int, state: str) -> None:
    keys = [*range(100 - repeats), *[0] * repeats]
    labels = np.asarray(keys) % 2
    found = by_name(clean() | {"train": rows(keys, labels)})
    assert found["duplicates"].state == state and found["conflicting labels"].state == "good"
    assert (f"{repeats} of 100 train rows" in found["duplicates"].sentence) == bool(repeats)


def test_equal_texts_with_other_labels() -> None:
    check = by_name(clean() | {"train": rows([0, 0, 0, *range(3, 400)], [0, 1, 1, *[0, 1] * 198, 1])})
    assert check["conflicting labels"].sentence == "1 text has different labels in 3 rows"
    assert check["conflicting labels"].state == "look"


@pytest.mark.parametrize(("ones", "state"), [(50, "good"), (85, "look"), (96, "bad"), (4, "bad")])
def test_one_label_nearly_always(ones: int, state: str) -> None:
    check = by_name(clean() | {"train": rows(range(100), [1] * ones + [0] * (100 - ones))})["label balance"]
    assert check.state == state
    assert ("macro F1" in check.hint) == (state != "good")


def test_a_rare_label_is_named() -> None:
    labels = [0] * 49 + [1] * 48 + [2] * 3
    check = by_name(clean() | {"train": rows(range(100), labels)}, (*NAMES, "mixed"))["label balance"]
    assert check.state == "look" and "mixed (3)" in check.sentence


def test_labels_that_differ_in_case_or_blanks_alone() -> None:
    check = by_name(clean(), ("Good", " good"))["similar labels"]
    assert check.state == "look" and "'Good' and ' good'" in check.sentence


@pytest.mark.parametrize(("support", "state"), [(3, "look"), (40, "bad")])
def test_a_label_that_is_never_predicted_right(support: int, state: str) -> None:
    found = by_name(clean(), record=record(("bad", 0.9, 10), ("good", 0.0, support)))
    check = found["labels never predicted"]
    assert check.state == state and f"linear-1 never predicts right: good ({support} rows)" in check.sentence


def test_a_label_without_rows_is_not_missed() -> None:
    found = by_name(clean(), record=record(("bad", 0.9, 10), ("good", 0.0, 0)))
    assert found["labels never predicted"].state == "good"


@pytest.mark.parametrize(("truncated", "state"), [(0, "good"), (1, "look"), (40, "bad")])
def test_truncated_texts(truncated: int, state: str) -> None:
    check = by_name(clean() | {"train": rows(range(100), truncated=truncated)})["truncated texts"]
    assert check.state == state and "128 tokens" in check.sentence


@pytest.mark.parametrize(("share", "state"), [(0.0, "good"), (0.002, "look"), (0.4, "bad")])
def test_unknown_tokens(share: float, state: str) -> None:
    check = by_name(clean() | {"test": rows(range(120, 140), unknown_tokens=share)})["unknown tokens"]
    assert check.state == state and ("test" in check.sentence) == bool(share)


def test_what_is_not_known_is_not_called_good() -> None:
    assert "unknown tokens" not in by_name({"train": rows(range(100))})


def test_numbers_have_no_label_checks() -> None:
    found = by_name({"train": rows(range(50), np.linspace(0, 1, 50))}, ())
    assert list(found) == ["leaked rows", "duplicates", "conflicting labels", "truncated texts"]


def test_several_labels_a_row() -> None:
    hot = np.tile(np.asarray([[1, 0], [1, 1]], np.uint8), (50, 1))
    check = by_name({"train": rows(range(100), hot)})["label balance"]
    assert check.state == "bad" and "100.0 % of the train rows have the label bad" in check.sentence


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.lists(st.integers(0, 30), min_size=1))
def test_counts_are_those_of_sets(train: list[int], test: list[int]) -> None:
    labels = [[key % 3 == 0 for key in keys] for keys in (train, test)]
    found = by_name({"train": rows(train, np.int64(labels[0])), "test": rows(test, np.int64(labels[1]))})
    leaked, repeated = sum(key in train for key in test), len(train) - len(set(train))
    assert (found["leaked rows"].state == "good") == (leaked == 0)
    assert (f"{repeated:,} of {len(train):,} train rows" in found["duplicates"].sentence) == bool(repeated)
    assert found["conflicting labels"].state == "good"
