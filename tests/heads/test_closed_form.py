"""Heads without gradient steps, against scikit-learn's estimators on standardised features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import featcache.heads.features
from featcache.errors import HeadError
from featcache.heads.closed_form import centroid, discriminant, neighbours, ridge
from featcache.heads.features import LabelledFeatures
from featcache.heads.probabilities import softmax
from featcache.heads.scorers import Scorer
from tests.support.feature_rows import clusters, standardised, tagged

Solver = Callable[..., Scorer]
LINEAR = [ridge, discriminant, centroid]
every_solver = pytest.mark.parametrize("solve", [*LINEAR, neighbours], ids=lambda solve: solve.__name__)
linear_solvers = pytest.mark.parametrize("solve", LINEAR, ids=lambda solve: solve.__name__)


@pytest.fixture(params=[1 << 22, 40], ids=["all rows at once", "a few rows at a time"], autouse=True)
def numbers_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featcache.heads.features, "NUMBERS_AT_ONCE", request.param)


# ---------------------------------------------------------------- ridge


@pytest.mark.parametrize("alpha", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_ridge_equals_scikit_learn(alpha: float, classes: int) -> None:
    (x, y), (test, _) = clusters(120, classes=classes), clusters(50, classes=classes, seed=2)
    scaled, scaled_test = standardised(x, test)
    reference = RidgeClassifier(alpha=alpha).fit(scaled, y)
    expected = reference.decision_function(scaled_test)
    if classes == 2:
        expected = np.stack([-expected, expected], axis=1)
    found = ridge(x, y, classes, alpha=alpha).logits(test)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(found.argmax(1), reference.predict(scaled_test))


def test_ridge_with_several_labels_equals_scikit_learn() -> None:
    (x, y), (test, _) = tagged(150), tagged(50, seed=2)
    scaled, scaled_test = standardised(x, test)
    reference = RidgeClassifier(alpha=2.0).fit(scaled, y.astype(np.int64))
    found = ridge(x, y, 4, alpha=2.0).logits(test)
    np.testing.assert_allclose(found, reference.decision_function(scaled_test), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(found > 0, reference.predict(scaled_test))


def test_ridge_with_more_features_than_rows_equals_scikit_learn() -> None:
    (x, y), (test, _) = clusters(12, width=40), clusters(50, width=40, seed=2)
    scaled, scaled_test = standardised(x, test)
    expected = RidgeClassifier(alpha=0.1).fit(scaled, y).decision_function(scaled_test)
    np.testing.assert_allclose(ridge(x, y, 3, alpha=0.1).logits(test), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [12, 200])
def test_weighted_ridge_equals_scikit_learn_with_more_and_with_fewer_rows_than_features(rows: int) -> None:
    (x, y), (test, _) = clusters(rows, width=40), clusters(50, width=40, seed=2)
    weight = np.random.default_rng(1).uniform(0.1, 3, rows)
    scaled, scaled_test = standardised(x, test)
    expected = RidgeClassifier(alpha=2.0).fit(scaled, y, sample_weight=weight).decision_function(scaled_test)
    found = ridge(x, y, 3, alpha=2.0, row_weight=weight).logits(test)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
def test_ridge_refuses_an_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(HeadError, match=f"--alpha {alpha}"):
        ridge(*clusters(20), 3, alpha=alpha)


def test_ridge_refuses_an_alpha_too_small_for_equal_features() -> None:
    x, y = clusters(30)
    twins = np.concatenate([x, x], axis=1)
    with pytest.raises(HeadError, match="too small") as caught:
        ridge(twins, y, 3, alpha=1e-300)
    assert "larger" in str(caught.value)


# ---------------------------------------------------------------- discriminant


@pytest.mark.parametrize("shrinkage", ["auto", 0.0, 0.3, 1])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("rows", [25, 200])
def test_discriminant_equals_scikit_learn(shrinkage: Any, classes: int, rows: int) -> None:
    (x, y), (test, _) = clusters(rows, classes=classes), clusters(50, classes=classes, seed=2)
    scaled, scaled_test = standardised(x, test)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaled, y)
    found = discriminant(x, y, classes, shrinkage=shrinkage).logits(test)
    np.testing.assert_allclose(softmax(found), reference.predict_proba(scaled_test), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(1), reference.predict(scaled_test))


@pytest.mark.parametrize("width", [1, 40])
def test_discriminant_of_one_or_many_features_equals_scikit_learn(width: int) -> None:
    """One feature, where nothing is shrunk; more features than rows."""
    (x, y), (test, _) = clusters(20, width=width), clusters(50, width=width, seed=2)
    scaled, scaled_test = standardised(x, test)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(scaled, y)
    found = discriminant(x, y, 3).logits(test)
    np.testing.assert_allclose(softmax(found), reference.predict_proba(scaled_test), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shrinkage", ["auto", 0.2])
def test_discriminant_with_a_class_of_one_row_equals_scikit_learn(shrinkage: Any) -> None:
    (x, y), (test, _) = clusters(60), clusters(50, seed=2)
    y = np.where(np.arange(60) == 7, 3, y)
    scaled, scaled_test = standardised(x, test)
    with pytest.warns(UserWarning, match="one sample"):
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaled, y)
    found = discriminant(x, y, 4, shrinkage=shrinkage).logits(test)
    np.testing.assert_allclose(softmax(found), reference.predict_proba(scaled_test), rtol=0, atol=1e-5)


def test_discriminant_with_several_labels_equals_one_for_each_label() -> None:
    (x, y), (test, _) = tagged(150), tagged(50, seed=2)
    scaled, scaled_test = standardised(x, test)
    found = discriminant(x, y, 4).logits(test)
    for label in range(4):
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(scaled, y[:, label])
        expected = reference.decision_function(scaled_test)
        np.testing.assert_allclose(found[:, label], expected, rtol=0, atol=1e-4)


@given(rows=st.integers(2, 30), width=st.integers(2, 8), seed=st.integers(0, 10_000))
def test_ledoit_wolf_from_sums_equals_scikit_learn(rows: int, width: int, seed: int) -> None:
    from sklearn.covariance import ledoit_wolf

    from featcache.heads.closed_form import _ledoit_wolf

    draw = np.random.default_rng(seed)
    x = draw.standard_t(4, size=(rows, width)) * draw.uniform(0.1, 3, width)
    expected = ledoit_wolf(x)[1]
    x -= x.mean(axis=0)
    found = _ledoit_wolf(x.T @ x / rows, ((x**2).sum(axis=1) ** 2).sum(), rows)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, np.nan, "ledoit", None])
def test_discriminant_refuses_a_shrinkage_out_of_range(shrinkage: Any) -> None:
    with pytest.raises(HeadError, match=f"--shrinkage {shrinkage}"):
        discriminant(*clusters(20), 3, shrinkage=shrinkage)


@pytest.mark.parametrize("copies", [1, 3, 7])
def test_discriminant_refuses_classes_without_different_rows(copies: int) -> None:
    x = np.repeat(clusters(6, classes=6)[0], copies, axis=0)
    with pytest.raises(HeadError, match="two different rows"):
        discriminant(x, np.repeat(np.arange(6), copies), 6)


# ---------------------------------------------------------------- centroid


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_centroid_equals_scikit_learn(classes: int, seed: int) -> None:
    (x, y), (test, _) = clusters(90, classes=classes, seed=seed), clusters(300, classes=classes, seed=50)
    scaled, scaled_test = standardised(x, test)
    reference = NearestCentroid().fit(scaled, y)
    found = centroid(x, y, classes).logits(test)
    np.testing.assert_array_equal(found.argmax(1), reference.predict(scaled_test))
    distances = ((scaled_test[:, None] - reference.centroids_) ** 2).sum(-1) / -2
    gaps = found - distances
    np.testing.assert_allclose(gaps, np.broadcast_to(gaps[:, :1], gaps.shape), rtol=0, atol=1e-4)


def test_centroid_with_several_labels_equals_one_for_each_label() -> None:
    (x, y), (test, _) = tagged(150), tagged(300, seed=2)
    scaled, scaled_test = standardised(x, test)
    found = centroid(x, y, 4).logits(test)
    for label in range(4):
        reference = NearestCentroid().fit(scaled, y[:, label])
        np.testing.assert_array_equal(found[:, label] > 0, reference.predict(scaled_test))


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 15, 90])
def test_neighbours_equal_scikit_learn(metric: str, k: int) -> None:
    (x, y), (test, _) = clusters(90), clusters(200, seed=1)
    scaled, scaled_test = standardised(x, test)
    reference = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(scaled, y)
    found = neighbours(x, y, 3, neighbours=k, metric=metric).logits(test)
    np.testing.assert_array_equal(found.argmax(1), reference.predict(scaled_test))


def test_neighbours_with_several_labels_equal_scikit_learn() -> None:
    (x, y), (test, _) = tagged(90), tagged(200, seed=1)
    scaled, scaled_test = standardised(x, test)
    reference = KNeighborsClassifier(15, metric="cosine", algorithm="brute").fit(scaled, y)
    np.testing.assert_array_equal(neighbours(x, y, 4).logits(test) > 0, reference.predict(scaled_test))


def test_neighbours_do_not_copy_the_features() -> None:
    x, y = clusters(30)
    stored = x.astype(np.float16)
    assert neighbours(stored, y, 3).features is stored


@pytest.mark.parametrize("k", [0, 31])
def test_neighbours_refuse_more_neighbours_than_rows(k: int) -> None:
    with pytest.raises(HeadError, match=f"{k} neighbours of 30 rows"):
        neighbours(*clusters(30), 3, neighbours=k)


# ---------------------------------------------------------------- all of them


def solved(solve: Solver, data: LabelledFeatures, classes: int) -> Scorer:
    return solve(*data, classes, **({"neighbours": 3} if solve is neighbours else {}))


@every_solver
@pytest.mark.parametrize("make", [clusters, tagged], ids=["one label", "several"])
def test_float16_features_give_the_head_of_their_float32_values(
    solve: Solver, make: Any, tmp_path: Path
) -> None:
    """Features as the cache returns them: float16, read-only, memory-mapped."""
    x, y = make(60)
    x.astype(np.float16).tofile(tmp_path / "x")
    stored = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    classes = 4 if make is tagged else 3
    found = solved(solve, LabelledFeatures(stored, y), classes).logits(stored)
    expected = solved(solve, LabelledFeatures(np.asarray(stored, np.float32), y), classes).logits(stored)
    np.testing.assert_array_equal(found, expected)


@every_solver
@pytest.mark.parametrize(("present", "classes"), [([0, 2], 3), ([1, 2, 4], 6)])
def test_class_without_train_rows_is_never_predicted(solve: Solver, present: list[int], classes: int) -> None:
    x, y = clusters(90, classes=len(present))
    scorer = solved(solve, LabelledFeatures(x, np.array(present)[y]), classes)
    wild = np.concatenate([x, 50 * np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)])
    found = scorer.logits(wild)
    assert found.shape == (490, classes)
    assert set(found.argmax(1)) == set(present)
    plain = solved(solve, LabelledFeatures(x, y), len(present)).logits(wild)
    np.testing.assert_array_equal(np.array(present)[plain.argmax(1)], found.argmax(1))
    if solve is not neighbours:
        np.testing.assert_array_equal(found[:, present], plain)
        assert (np.delete(found, present, axis=1) == -1e4).all()


@every_solver
def test_labels_of_no_row_or_all_rows_get_constant_logits(solve: Solver) -> None:
    x, y = tagged(60)
    widened = np.insert(y, [0, 2], np.array([0, 1], np.uint8), axis=1)  # columns 0 and 3
    found, plain = (
        solved(solve, LabelledFeatures(x, widened), 6).logits(x),
        solved(solve, LabelledFeatures(x, y), 4).logits(x),
    )
    np.testing.assert_array_equal(np.delete(found, [0, 3], axis=1), plain)
    never, always = found[:, 0], found[:, 3]
    if solve is neighbours:
        np.testing.assert_allclose(never, np.log(0.5 / 3.5), rtol=1e-6)
        np.testing.assert_allclose(always, np.log(3.5 / 0.5), rtol=1e-6)
    else:
        assert (never == -1e4).all()
        assert (always == 1e4).all()


@every_solver
@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_constant_features_do_not_change_the_logits(solve: Solver, constant: float) -> None:
    x, y = clusters(60)
    fixed = np.concatenate([x, np.full((60, 2), constant, np.float32)], axis=1)
    found = solved(solve, LabelledFeatures(fixed, y), 3).logits(fixed)
    if solve is discriminant:  # where a feature without variance counts in the average that is shrunk to
        scaled = standardised(fixed)[0]
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(scaled, y)
        np.testing.assert_allclose(softmax(found), reference.predict_proba(scaled), rtol=0, atol=1e-4)
    else:
        np.testing.assert_allclose(
            found, solved(solve, LabelledFeatures(x, y), 3).logits(x), rtol=0, atol=1e-4
        )


@every_solver
def test_feature_with_a_large_mean_is_used(solve: Solver) -> None:
    """Some Transformers have such outliers: mean 20, spread 0.1, and all that matters is in the spread."""
    draw = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = np.stack([20 + 0.1 * (y * 2 - 1) + 0.05 * draw.normal(size=80), 0.1 * draw.normal(size=80)], 1)
    found = solved(solve, LabelledFeatures(x.astype(np.float16), y), 2).logits(x.astype(np.float16))
    assert (found.argmax(1) == y).mean() > 0.95


@every_solver
def test_repeated_rows(solve: Solver) -> None:
    x, y = clusters(40)
    found = solved(solve, LabelledFeatures(np.tile(x, (3, 1)), np.tile(y, 3)), 3).logits(x)
    if solve is neighbours:  # the three nearest are the row itself
        np.testing.assert_array_equal(found.argmax(1), y)
    elif solve is centroid:
        np.testing.assert_allclose(found, centroid(x, y, 3).logits(x), rtol=0, atol=1e-4)
    elif solve is ridge:
        np.testing.assert_allclose(found, ridge(x, y, 3, alpha=1 / 3).logits(x), rtol=0, atol=1e-4)
    else:
        scaled = standardised(np.tile(x, (3, 1)))[0]
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(scaled, np.tile(y, 3))
        np.testing.assert_allclose(softmax(found), reference.predict_proba(scaled[:40]), rtol=0, atol=1e-5)


@every_solver
def test_more_classes_than_rows_give_finite_logits(solve: Solver) -> None:
    x, y = clusters(8, classes=4, width=20)
    found = solved(solve, LabelledFeatures(x, y * 5), 20).logits(x)
    assert found.shape == (8, 20)
    assert np.isfinite(found).all()
    assert set(found.argmax(1)) <= {0, 5, 10, 15}


@every_solver
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_infinite_features_are_refused(solve: Solver, bad: float) -> None:
    x, y = clusters(30)
    x[7, 2] = x[11, 0] = bad
    with pytest.raises(HeadError, match=r"2 rows of the train features .* row 8"):
        solve(x, y, 3)


@every_solver
@pytest.mark.parametrize(
    ("y", "match"),
    [
        (np.ones(30, np.int64), "single class"),
        (np.full(30, 3), "not of 3 classes"),
        (np.arange(30) % 3 - 1, "not of 3 classes"),
        (np.arange(30) / 30, "not of 3 classes"),
        (np.zeros(29, np.int64), "rows"),
        (np.tile(np.array([0, 1, 1], np.uint8), (30, 1)), "in all train rows or in none"),
        (np.full((30, 3), 2, np.uint8), "not of 3 classes"),
        (np.zeros((30, 4), np.uint8), "not of 3 classes"),
        (np.zeros((30, 3)), "not of 3 classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{list(value.shape)}",
)
def test_labels_that_do_not_fit_are_refused(solve: Solver, y: np.ndarray, match: str) -> None:
    with pytest.raises(HeadError, match=match):
        solve(clusters(30)[0], y, 3)


@every_solver
def test_features_that_do_not_fit_are_refused(solve: Solver) -> None:
    x, y = clusters(30)
    with pytest.raises(HeadError, match="all train rows have the same features"):
        solve(np.repeat(x[:1], 30, axis=0), y, 3)
    for empty in (x[:0], x[:, :0], x[0]):
        with pytest.raises(HeadError, match=r"rows \[N, D\] are needed"):
            solve(empty, y[: len(empty)], 3)


@linear_solvers
def test_train_rows_are_not_copied(solve: Solver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(featcache.heads.features, "NUMBERS_AT_ONCE", 1 << 14)
    x, y = clusters(40_000, width=32)
    x.astype(np.float16).tofile(tmp_path / "x")
    stored = np.memmap(tmp_path / "x", np.float16, "r", shape=x.shape)
    solve(stored[:50], y[:50], 3)  # what is imported late is no part of it
    tracemalloc.start()
    try:
        solve(stored, y, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < stored.size * 2 * 0.6  # not even in float16
