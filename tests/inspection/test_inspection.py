"""Inspections of made-up splits: planted duplicates, leaks, conflicts, label errors and outliers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from featcache.data.text_lookup import RowTexts
from featcache.errors import HeadError, UsageError
from featcache.inspection.document import findings
from featcache.inspection.inspection import (
    InspectedRows,
    Inspection,
    conflicting_rows,
    inspect_splits,
    near_pairs,
    score_without_leaks,
)
from featcache.system.documents import json_document
from tests.support.documents import encoder_document
from tests.support.inspected import NAMES, changed, part, splits
from tests.support.saved_runs import hashes

NO_TEXTS = RowTexts({}, {}, "no texts")


def told_of(inspection: Inspection) -> dict[str, Any]:
    """The findings without texts, as `featcache inspect --json` has them."""
    return json_document(findings(inspection, NO_TEXTS))  # type: ignore[no-any-return]


def pairs_of(found: Inspection) -> set[tuple[str, int, str, int]]:
    """Every match as (split, row, split of the earlier row, that row)."""
    return {
        (*found.rows.where(int(row)), *found.rows.where(int(found.match[row])))
        for row in np.flatnonzero(found.match >= 0)
    }


def test_inspect_splits_finds_planted_leaks_and_no_others() -> None:
    planted = changed(splits(), "validation", {3: ("train", 10, 0), 5: ("train", 11, 0.01)})
    copies = {
        0: ("train", 10, 0),
        1: ("validation", 7, 0),
        2: ("train", 12, 0.01),
        4: ("validation", 8, 0.01),
    }
    planted = changed(planted, "test", copies)
    found = inspect_splits(planted)
    assert pairs_of(found) == {
        ("validation", 3, "train", 10),
        ("validation", 5, "train", 11),
        ("test", 0, "train", 10),
        ("test", 1, "validation", 7),
        ("test", 2, "train", 12),
        ("test", 4, "validation", 8),
    }
    exact = found.cosine[found.match >= 0] == 1
    assert exact.sum() == 3
    assert np.flatnonzero(found.leaked("test")).tolist() == [0, 1, 2, 4]
    assert np.flatnonzero(found.leaked("test", ("train",))).tolist() == [0, 2]
    told = told_of(found)
    assert [tuple(line.values()) for line in told["leakage"]["pairs"]] == [
        ("validation", "train", 2, 1, 1, 0),
        ("test", "train", 2, 1, 1, 0),
        ("test", "validation", 2, 1, 1, 0),
    ]
    assert [row["row_hash"] for row in told["leakage"]["list"][-1:]] == [
        hashes(["validation 7"]).tobytes().hex()
    ]


def test_inspect_splits_finds_nothing_in_clean_splits() -> None:
    found = inspect_splits(splits())
    told = told_of(found)
    assert not pairs_of(found) and not len(near_pairs(found.near, found.threshold)[0])
    assert told["leakage"]["list"] == [] and told["duplicates"]["near_pairs"] == 0
    assert all(one["equal"] == one["near"] == 0 for one in told["duplicates"]["splits"].values())
    assert told["duplicates"]["conflicting_rows"] == 0
    assert all(score["removed"] == 0 and score["leaked"] is None for score in told["leakage"]["scores"])
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_inspect_splits_scores_without_leaked_rows() -> None:
    """Rows learnt by heart: half of test is train rows with labels no feature explains."""
    x = np.random.default_rng(0).normal(size=(400, 300)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 2, 400)
    copied, fresh = np.arange(100), np.arange(250, 350)
    texts = [f"text {row}" for row in range(400)]
    rows = {
        "train": np.arange(200),
        "validation": np.arange(200, 250),
        "test": np.concatenate([copied, fresh]),
    }
    parts = {
        name: part(name, x[here], y[here], [texts[row] for row in here], ("a", "b"))
        for name, here in rows.items()
    }
    found = inspect_splits(parts)
    test = next(score for score in found.scores if score.split == "test")
    assert (test.rows, test.removed) == (200, 100)
    assert test.leaked > 0.9 and test.without < 0.65
    assert test.whole == pytest.approx((test.leaked + test.without) / 2)
    low, high = test.without_interval
    assert low < test.without < high


def test_score_without_leaks_counts_the_other_rows() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = score_without_leaks("test", p, np.array([0, 1, 1, 1]), np.array([True, False, False, False]))
    assert (found.whole, found.without, found.leaked, found.removed) == (0.75, 2 / 3, 1.0, 1)
    every = score_without_leaks("test", p, np.array([0, 1, 1, 1]), np.ones(4, bool))
    assert np.isnan(every.without) and np.isnan(every.without_interval).all()


def test_findings_list_duplicates_and_conflicting_labels() -> None:
    planted = changed(splits(), "train", {5: ("train", 4, 0), 6: ("train", 4, 0), 30: ("train", 31, 0.01)})
    train = planted["train"]
    y = train.features.y.copy()
    y[6] = (y[4] + 1) % 3
    planted["train"] = replace(train, features=replace(train.features, y=y))
    found = inspect_splits(planted)
    told = told_of(found)["duplicates"]
    assert told["splits"]["train"] == {"rows": 240, "texts": 238, "equal": 2, "near": 1}
    assert conflicting_rows(found.rows).tolist() == [4, 5, 6]
    assert (told["conflicting_texts"], told["conflicting_rows"]) == (1, 3)
    assert [row["label"] for row in told["conflict_list"]] == [NAMES[y[4]], NAMES[y[4]], NAMES[y[6]]]
    assert told["near_pairs"] == 1
    pair = told["near_list"][0]["rows"]
    assert [row["row_hash"] for row in pair] == [hashes([f"train {row}"]).tobytes().hex() for row in (30, 31)]
    assert told["equal_list"][0]["times"] == 3


def test_findings_list_label_errors_with_the_right_label() -> None:
    parts = splits(noise=1.5)
    train = parts["train"]
    y = train.features.y.copy()
    y[50:62] = (y[50:62] + 1) % 3
    parts["train"] = replace(train, features=replace(train.features, y=y))
    told = told_of(inspect_splits(parts))["label_errors"]
    assert told["not_looked_for"] == "" and 9 <= told["rows"] <= 16
    first = {row["row_hash"]: row for row in told["list"]}
    hits = [number for number in range(50, 62) if hashes([f"train {number}"]).tobytes().hex() in first]
    assert len(hits) >= 9
    for number in hits:
        row = first[hashes([f"train {number}"]).tobytes().hex()]
        assert (row["label"], row["suggested"]) == (NAMES[y[number]], NAMES[train.features.y[number]])
        assert row["belief"] < 0.5


def test_inspect_splits_finds_an_outlier_in_every_split() -> None:
    parts = splits(noise=0.5)
    for name, row in (("train", 7), ("test", 9)):
        features = parts[name].features
        x = features.x.copy()
        x[row] = 40 * np.random.default_rng(row).choice([-1, 1], 40)
        parts[name] = replace(parts[name], features=replace(features, x=x))
    found = inspect_splits(parts)
    first = {found.rows.where(int(row)) for row in found.outliers[:2]}
    assert first == {("train", 7), ("test", 9)}
    told = told_of(found)["outliers"]
    assert told["list"][0]["distance"] >= told["list"][-1]["distance"] > told["beyond"]


def test_findings_count_labels_and_truncated_texts() -> None:
    parts = splits()
    tokens = np.full(240, 8, np.int32)
    tokens[:6] = 21
    parts["train"] = replace(parts["train"], n_tokens=tokens, truncated=tokens > 20, unknown_tokens=0.07)
    told = told_of(inspect_splits(parts))
    y = parts["train"].features.y
    assert told["balance"]["train"] == {name: int((y == number).sum()) for number, name in enumerate(NAMES)}
    cut = told["truncation"]["train"]
    assert (cut["rows"], cut["cut"], cut["max_length"], cut["tokens"]) == (240, 6, 20, 6 * 21 + 234 * 8)
    assert (cut["median_tokens"], cut["longest_tokens"], cut["unknown_tokens"]) == (8, 21, 0.07)
    assert cut["cut_by_label"] == {name: int((y[:6] == number).sum()) for number, name in enumerate(NAMES)}


def test_findings_of_multi_label_rows() -> None:
    parts = splits()
    hot = {name: np.eye(3, dtype=np.uint8)[one.features.y] for name, one in parts.items()}
    hot["train"][3, :] = 0, 1, 1
    classes = np.count_nonzero(hot["train"])
    several = {name: replace(one, features=replace(one.features, y=hot[name])) for name, one in parts.items()}
    told = told_of(inspect_splits(changed(several, "test", {0: ("train", 3, 0)})))
    assert told["leakage"]["pairs"][1]["equal"] == 1
    assert told["leakage"]["list"][0]["label"] == ["b", "c"]
    assert told["label_errors"]["not_looked_for"] == "" and sum(told["balance"]["train"].values()) == classes


def test_findings_of_train_alone_and_of_a_single_class() -> None:
    alone = {"train": splits()["train"]}
    told = told_of(inspect_splits(alone))
    assert told["leakage"]["pairs"] == [] and told["leakage"]["scores"] == []
    same = replace(alone["train"], features=replace(alone["train"].features, y=np.zeros(240, np.int64)))
    told = told_of(inspect_splits({"train": same}))
    assert "single class" in told["label_errors"]["not_looked_for"]


@pytest.mark.parametrize(
    ("how", "words"),
    [({"threshold": 0.0}, "threshold"), ({"threshold": 1.5}, "threshold"), ({"neighbours": 0}, "neighbours"),
     ({"folds": 1}, "folds")],
)  # fmt: skip
def test_inspect_splits_refuses_numbers_out_of_range(how: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inspect_splits(splits(), **how)  # type: ignore[arg-type]


def test_inspect_splits_refuses_splits_with_other_settings() -> None:
    parts = splits()
    features = replace(parts["test"].features, encoder=encoder_document(prompt="x"))
    other = replace(parts["test"], features=features)
    with pytest.raises(HeadError, match="test features were made with other settings"):
        inspect_splits({**parts, "test": other})
    with pytest.raises(UsageError, match="train, then"):
        inspect_splits({"test": parts["test"]})
    x = parts["test"].features.x.copy()
    x[2, 2] = np.nan
    with pytest.raises(HeadError, match="row 3"):
        inspect_splits(
            {**parts, "test": replace(parts["test"], features=replace(parts["test"].features, x=x))}
        )


def test_inspected_rows_number_all_splits() -> None:
    parts = changed(splits(), "test", {1: ("train", 2, 0)})
    rows = InspectedRows.of(parts)
    assert len(rows) == 400 and rows.where(239) == ("train", 239) and rows.where(240) == ("validation", 0)
    assert rows.where(int(rows.first[rows.text[rows.starts[2] + 1]])) == ("train", 2)
