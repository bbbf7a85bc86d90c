"""What a report says of a run: every number against an independent count."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from featcache.errors import HeadError, UsageError
from featcache.evaluation.calibration import expected_calibration_error
from featcache.heads.fit import Epoch
from featcache.reporting.build import build_report
from featcache.reporting.cost import cost, padded
from featcache.reporting.numbers import (
    by_length,
    by_truncation,
    confidence_histogram,
    reliability,
    wilson,
    worst,
)
from featcache.reporting.projection import project
from featcache.runs.predictions import Predictions
from featcache.runs.record import CacheReference
from featcache.runs.run import Run
from featcache.system.text import readable
from tests.support.inspected import part
from tests.support.saved_runs import BINARY, hashes, noisy, predictions, save

CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
LABELS = np.arange(200) % 2


def sure(rows: int = 500, classes: int = 3, seed: int = 0) -> Predictions:
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.ones(classes) * 0.6, rows)
    y = np.array([draw.choice(classes, p=row) for row in p])
    return Predictions.of(hashes(range(rows)), y, p, tuple("abcdef"[:classes]))


def tagged(rows: int = 300) -> Predictions:
    draw = np.random.default_rng(1)
    p = draw.random((rows, 4))
    return Predictions.of(
        hashes(range(rows)), (draw.random((rows, 4)) < p).astype(np.uint8), p, tuple("abcd")
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three runs on the same rows, the second clearly better, the third a tie."""
    return [
        save(tmp_path / "reports", head, test=predictions(LABELS, noisy(LABELS, wrong, start=start)))
        for head, wrong, start in (("linear", 40, 0), ("exact", 5, 0), ("ridge", 42, 1))
    ]


# ---------------------------------------------------------------- numbers


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_is_scipys(hits: int, rows: int) -> None:
    hits = min(hits, rows)
    low, high = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert wilson(hits, rows) == pytest.approx((low, high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_reliability_is_that_of_scikit_learn_and_adds_up_to_the_calibration_error() -> None:
    said = sure()
    bins = reliability(said)
    right, confidence = said.labels == said.predicted, said.probabilities.max(axis=1)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    assert [one["accuracy"] for one in bins] == pytest.approx(accuracy)
    assert [one["confidence"] for one in bins] == pytest.approx(mean)
    gap = sum(one["rows"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / 500
    assert gap == pytest.approx(expected_calibration_error(said.probabilities, said.labels))


@pytest.mark.parametrize("said", [sure(), tagged()], ids=["single", "several"])
def test_histograms_count_everything_once(said: Predictions) -> None:
    counts: Any = confidence_histogram(said)
    entries = said.probabilities.size if said.multi_label else len(said)
    assert (
        sum(counts["right"]) + sum(counts["wrong"])
        == entries
        == sum(one["rows"] for one in reliability(said))
    )
    right = said.labels.sum() if said.multi_label else (said.labels == said.predicted).sum()
    assert sum(counts["right"]) == right


def test_the_worst_mistakes_are_the_surest() -> None:
    said = sure()
    rows, confidence = worst(said, 7)
    wrong = np.flatnonzero(said.labels != said.predicted)
    expected = sorted(wrong.tolist(), key=lambda row: -said.probabilities[row].max())[:7]
    assert rows.tolist() == expected
    assert confidence.tolist() == said.probabilities[rows].max(axis=1).tolist()


def test_the_worst_mistakes_of_several_labels() -> None:
    p = np.array([[0.9, 0.9], [0.1, 0.99], [0.6, 0.4], [0.95, 0.02]])
    y = np.array([[1, 1], [1, 1], [0, 0], [0, 1]], np.uint8)
    rows, confidence = worst(Predictions.of(hashes(range(4)), y, p, ("a", "b")))
    assert rows.tolist() == [3, 1, 2] and confidence.tolist() == pytest.approx([0.98, 0.9, 0.6])


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=200))
def test_bins_of_length_hold_every_row_once_and_do_not_overlap(rows: list[tuple[int, bool]]) -> None:
    tokens, right = (np.array(column) for column in zip(*rows, strict=True))
    said = predictions(np.zeros(len(rows), int), np.where(right, 0, 1))
    bins = by_length(said, tokens)
    assert sum(one["rows"] for one in bins) == len(rows)
    assert all(a["to"] < b["from"] for a, b in itertools.pairwise(bins))
    for one in bins:
        inside = (tokens >= one["from"]) & (tokens <= one["to"])
        assert (one["rows"], one["accuracy"]) == (inside.sum(), pytest.approx(right[inside].mean()))


def test_truncated_texts_are_counted_apart() -> None:
    said = predictions([0, 0, 1, 1], [0, 1, 1, 1])
    told = by_truncation(said, np.array([True, True, False, False]))
    assert (told["cut"]["accuracy"], told["whole"]["accuracy"]) == (0.5, 1.0)
    assert by_truncation(said, np.zeros(4, bool))["cut"] == {
        "rows": 0,
        "accuracy": None,
        "interval": (0.0, 1.0),
    }


def test_the_map_is_that_of_scikit_learn() -> None:
    spread = np.random.default_rng(0).normal(size=(80, 6)) * [9, 5, 1, 1, 1, 1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    x = (spread @ turn).astype(np.float32)
    points, explained = project(x, "pca")
    model = PCA(2).fit(StandardScaler().fit_transform(x))
    expected = model.transform(StandardScaler().fit_transform(x))
    assert np.abs(np.corrcoef(points.T, expected.T)[:2, 2:]).round(3).tolist() == [[1, 0], [0, 1]]
    assert explained == pytest.approx(model.explained_variance_ratio_.sum(), abs=1e-4)


def test_a_map_of_one_feature_or_of_equal_rows() -> None:
    points, _ = project(np.arange(10, dtype=np.float32)[:, None], "pca")
    assert points.shape == (10, 2) and len(np.unique(points[:, 0])) == 10
    assert (project(np.ones((10, 3), np.float32), "pca")[0] == 0).all()


def test_umap_is_used_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    class UMAP:
        def __init__(self, **how: Any) -> None:
            assert how["n_neighbors"] == 9 and how["random_state"] == 0

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            assert np.allclose(x.mean(axis=0), 0, atol=1e-5)
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))  # type: ignore[arg-type]
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    points, explained = project(x, "umap")
    assert explained is None and points.dtype == np.float64
    assert np.allclose(points, (x - x.mean(axis=0))[:, :2])


def test_padding_is_counted_as_a_loop_pads() -> None:
    tokens = np.random.default_rng(0).integers(3, 90, 117)
    order = np.random.default_rng(0).permutation(tokens)
    expected = sum(len(batch) * max(batch) for batch in (order[i : i + 50].tolist() for i in (0, 50, 100)))
    assert padded(tokens) == expected
    assert padded(np.full(117, 7)) == 117 * 7 and padded(np.zeros(0, int)) == 0


def test_the_cost_of_a_loop_is_counted_in_epochs(runs: list[Run]) -> None:
    x, y = np.zeros((60, 2), np.float32), np.zeros(60, int)
    parts = {
        name: part(
            name, x[:rows], y[:rows], [f"{name} {i}" for i in range(rows)], tokens=np.full(rows, 5, np.int32)
        )
        for name, rows in (("train", 60), ("validation", 20), ("test", 30))
    }
    told = cost(runs[:2], parts, {})
    assert told is not None and (told["epochs"], told["assumed_epochs"]) == (100, False)
    assert (told["texts_once"], told["tokens_once"]) == (110, 550)
    assert (told["texts_tutorial"], told["tokens_tutorial"]) == (100 * 80 + 30, 5 * (100 * 80 + 30))
    assert told["tutorial_seconds"] is None  # nobody knows how fast the extraction was
    assert told["factor"] == pytest.approx(8030 / 110) and told["head_seconds"] == pytest.approx(2 * 12.34)
    assert cost(runs, {}, {}) is None


# ---------------------------------------------------------------- the document


def test_a_run_without_its_cache_has_a_report_that_says_so(runs: list[Run]) -> None:
    told = build_report(runs)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["headline"]["accuracy"] == {"value": 0.8, "interval": [0.8125, 0.925]}
    assert [run["run"] for run in told["runs"]] == [run.name for run in runs]
    assert told["cost"] is told["map"] is told["lengths"] is told["data"] is None
    assert any("not inspected" in note for note in told["notes"]) and any(
        "texts" in note for note in told["notes"]
    )
    assert len(told["mistakes"]) == 20 and told["mistakes"][0]["text"] is None
    assert told["mistakes"][0]["label"] in BINARY and len(told["mistakes"][0]["row_hash"]) == 64


def test_the_paired_tests_are_those_of_compare(runs: list[Run]) -> None:
    from featcache.runs.compare import compare_runs

    told = build_report(runs, inspect=False)
    assert told["base"] == runs[0].name
    for line, made in zip(told["comparisons"], compare_runs(runs, runs[0]).made, strict=True):
        assert line["run"] == made.run.name
        assert line["accuracy"]["difference"] == made.accuracy.difference.value
        assert line["accuracy"]["p"] == made.accuracy.corrected_p
    assert [line["accuracy"]["tie"] for line in told["comparisons"]] == [False, True]


def test_a_run_that_cannot_be_compared_is_noted(runs: list[Run], tmp_path: Path) -> None:
    other = save(tmp_path / "reports", "mlp", test=predictions([0, 1], [0, 1], texts=["x", "y"]))
    told = build_report([*runs, other])
    assert len(told["comparisons"]) == 2
    assert any(other.name in note and "no row in common" in note for note in told["notes"])


def test_without_test_predictions_validation_is_reported(tmp_path: Path) -> None:
    run = save(tmp_path, validation=predictions([0, 1, 1], [0, 1, 0]))
    told = build_report([run])
    assert told["split"] == "validation" and any("validation" in note for note in told["notes"])
    with pytest.raises(HeadError, match="no run"):
        build_report([])


def test_curves_are_thinned_out_but_keep_the_best_epoch(runs: list[Run]) -> None:
    history = tuple(Epoch(n, 1.0, 0.5, 1.0, n / 5000) for n in range(1, 5001))
    run = replace(runs[0], record=replace(runs[0].record, history=history, best_epoch=2501))
    curve = build_report([run])["curves"][0]
    assert len(curve["epoch"]) <= 301 and {1, 2501, 5000} <= set(curve["epoch"])
    assert curve["validation_accuracy"] == [n / 5000 for n in curve["epoch"]]


def test_learning_curves_of_the_same_features_are_shown(runs: list[Run], tmp_path: Path) -> None:
    caches = {"train": CacheReference("gone.h5", "f")}
    run = replace(runs[0], record=replace(runs[0].record, caches=caches))
    point = {"rows": 10, "score": 0.5, "low": 0.4, "high": 0.6}
    curve = {"kind": "exact", "metric": "accuracy", "split": "test", "points": [point]}
    for name, train in (("curve-a", "f"), ("curve-b", "other")):
        folder = tmp_path / "reports" / name
        folder.mkdir()
        request = {"caches": {"train": train}, "view": "last/mean"}
        (folder / "curve.json").write_text(json.dumps(curve | {"request": request}))
    (tmp_path / "reports" / "curve-c").mkdir()
    (tmp_path / "reports" / "curve-c" / "curve.json").write_text("[1]")
    told = build_report([run], reports_dir=tmp_path / "reports")
    assert [one["points"] for one in told["learning_curves"]] == [[[10, 0.5, 0.4, 0.6]]]
    assert any("gone.h5" in note for note in told["notes"])


def test_maps_that_cannot_be_made_are_refused(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="sphere"):
        build_report(runs, projection="sphere")
    monkeypatch.setattr("featcache.reporting.projection.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="UMAP is not installed"):
        build_report(runs, projection="umap")


@given(st.text() | st.text(st.characters(categories=["Cs", "Cc"])))
def test_readable_texts_can_be_written_and_shown(text: str) -> None:
    shown = readable(text)
    shown.encode("utf-8")
    assert len(shown) == len(text)
    assert not any(ord(sign) < 32 and sign not in "\t\n" for sign in shown)
    assert readable(shown) == shown


def test_readable_leaves_chinese_and_emoji_alone() -> None:
    text = "房间很干净,\t价格便宜。\n👍🏽 naïve العربية"
    assert readable(text) == text
    assert readable("a\x00b\ud800c\u202ed\x1b[31m") == "a�b�c�d�[31m"
