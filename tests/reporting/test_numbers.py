"""The numbers of a report, each against an independent count."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from featcache.reporting.document import ShareRight
from featcache.reporting.numbers import (
    accuracy_by_length,
    accuracy_by_truncation,
    confidence_histogram,
    confident_mistakes,
    extraction_cost,
    padded_tokens,
    project,
    reliability,
    wilson_interval,
)
from featcache.runs.predictions import Predictions
from featcache.runs.run import Run
from tests.support.calibration_error import expected_calibration_error
from tests.support.inspected import part
from tests.support.saved_runs import hashes, predictions


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


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_interval_is_scipys(hits: int, rows: int) -> None:
    hits = min(hits, rows)
    low, high = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, rows) == pytest.approx((low, high), abs=1e-12)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_reliability_matches_scikit_learn_and_the_calibration_error() -> None:
    said = sure()
    bins = reliability(said)
    right, confidence = said.labels == said.predicted, said.probabilities.max(axis=1)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    assert [one.accuracy for one in bins] == pytest.approx(accuracy)
    assert [one.confidence for one in bins] == pytest.approx(mean)
    gap = sum(one.rows * abs(one.accuracy - one.confidence) for one in bins) / 500
    assert gap == pytest.approx(expected_calibration_error(said.probabilities, said.labels))


@pytest.mark.parametrize("said", [sure(), tagged()], ids=["single", "several"])
def test_confidence_histogram_counts_everything_once(said: Predictions) -> None:
    counts = confidence_histogram(said)
    entries = said.probabilities.size if said.multi_label else len(said)
    assert sum(counts.right) + sum(counts.wrong) == entries == sum(one.rows for one in reliability(said))
    right = (said.labels == said.predicted).sum()  # a label that is rightly not given is right
    assert sum(counts.right) == right


def test_confident_mistakes_are_the_most_confident_wrong_rows() -> None:
    said = sure()
    rows, confidence = confident_mistakes(said)
    wrong = np.flatnonzero(said.labels != said.predicted)
    expected = sorted(wrong.tolist(), key=lambda row: -said.probabilities[row].max())
    assert rows.tolist() == expected
    assert confidence.tolist() == said.probabilities[rows].max(axis=1).tolist()


def test_confident_mistakes_of_several_labels() -> None:
    p = np.array([[0.9, 0.9], [0.1, 0.99], [0.6, 0.4], [0.95, 0.02]])
    y = np.array([[1, 1], [1, 1], [0, 0], [0, 1]], np.uint8)
    rows, confidence = confident_mistakes(Predictions.of(hashes(range(4)), y, p, ("a", "b")))
    assert rows.tolist() == [3, 1, 2] and confidence.tolist() == pytest.approx([0.98, 0.9, 0.6])


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=200))
def test_accuracy_by_length_counts_every_row_once_in_separate_bins(rows: list[tuple[int, bool]]) -> None:
    tokens, right = (np.array(column) for column in zip(*rows, strict=True))
    said = predictions(np.zeros(len(rows), int), np.where(right, 0, 1))
    bins = accuracy_by_length(said, tokens)
    assert sum(one.rows for one in bins) == len(rows)
    assert all(a.to < b.from_ for a, b in itertools.pairwise(bins))
    for one in bins:
        inside = (tokens >= one.from_) & (tokens <= one.to)
        assert (one.rows, one.accuracy) == (inside.sum(), pytest.approx(right[inside].mean()))


def test_accuracy_by_truncation_counts_truncated_texts_apart() -> None:
    said = predictions([0, 0, 1, 1], [0, 1, 1, 1])
    told = accuracy_by_truncation(said, np.array([True, True, False, False]))
    assert (told.cut.accuracy, told.whole.accuracy) == (0.5, 1.0)
    assert accuracy_by_truncation(said, np.zeros(4, bool)).cut == ShareRight(0, None, (0.0, 1.0))


def test_project_by_pca_matches_scikit_learn() -> None:
    spread = np.random.default_rng(0).normal(size=(80, 6)) * [9, 5, 1, 1, 1, 1]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    x = (spread @ turn).astype(np.float32)
    points, explained = project(x, "pca")
    model = PCA(2).fit(StandardScaler().fit_transform(x))
    expected = model.transform(StandardScaler().fit_transform(x))
    assert np.abs(np.corrcoef(points.T, expected.T)[:2, 2:]).round(3).tolist() == [[1, 0], [0, 1]]
    assert explained == pytest.approx(model.explained_variance_ratio_.sum(), abs=1e-4)


def test_project_one_feature_or_equal_rows() -> None:
    points, _ = project(np.arange(10, dtype=np.float32)[:, None], "pca")
    assert points.shape == (10, 2) and len(np.unique(points[:, 0])) == 10
    assert (project(np.ones((10, 3), np.float32), "pca")[0] == 0).all()


def test_project_by_umap_centres_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_padded_tokens_counts_as_a_loop_pads() -> None:
    tokens = np.random.default_rng(0).integers(3, 90, 117)
    order = np.random.default_rng(0).permutation(tokens)
    expected = sum(len(batch) * max(batch) for batch in (order[i : i + 50].tolist() for i in (0, 50, 100)))
    assert padded_tokens(tokens) == expected
    assert padded_tokens(np.full(117, 7)) == 117 * 7 and padded_tokens(np.zeros(0, int)) == 0


def test_extraction_cost_counts_the_loop_in_epochs(runs: list[Run]) -> None:
    x, y = np.zeros((60, 2), np.float32), np.zeros(60, int)
    parts = {
        name: part(
            name, x[:rows], y[:rows], [f"{name} {i}" for i in range(rows)], tokens=np.full(rows, 5, np.int32)
        )
        for name, rows in (("train", 60), ("validation", 20), ("test", 30))
    }
    told = extraction_cost(runs[:2], parts, {})
    assert told is not None and (told.epochs, told.assumed_epochs) == (100, False)
    assert (told.texts_once, told.tokens_once) == (110, 550)
    assert (told.texts_tutorial, told.tokens_tutorial) == (100 * 80 + 30, 5 * (100 * 80 + 30))
    assert told.tutorial_seconds is None  # the speed of the extraction is not known
    assert told.factor == pytest.approx(8030 / 110) and told.head_seconds == pytest.approx(2 * 12.34)
    assert extraction_cost(runs, {}, {}) is None
