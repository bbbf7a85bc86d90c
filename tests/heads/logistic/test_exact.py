"""The exact solver against scikit-learn, scipy and the definition of what it minimises."""

from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from featcache.errors import HeadError
from featcache.heads.features import LabelledFeatures
from featcache.heads.logistic import objective as logistic
from featcache.heads.logistic.exact import Solution, fit, fit_path, refine, walk_path
from featcache.heads.registry import fit_exact
from featcache.settings import HeadSettings
from tests.support.logistic import reference, rows

PENALTIES = (1e-3, 0.03, 1.0, 10.0)


def objective(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, penalty: float) -> float:
    """scikit-learn's, divided by C * N, straight from its definition."""
    losses = -log_softmax(x.astype(np.float64) @ w.T + b, axis=1)[np.arange(len(y)), y]
    return float(losses.mean() + (w**2).sum() / (2 * penalty * len(y)))


def assert_same(solution: Solution, model: LogisticRegression) -> None:
    weight, bias = solution.weight, solution.bias
    if len(model.classes_) == 2:
        assert not weight[0].any() and bias[0] == 0
        weight, bias = weight[1:], bias[1:]
    scale = np.linalg.norm(model.coef_)
    assert np.linalg.norm(weight - model.coef_) <= 1e-4 * scale
    assert np.abs(bias - model.intercept_).max() <= 1e-4 * max(scale, np.abs(model.intercept_).max())


@pytest.mark.parametrize("shape", [(600, 40, 2), (600, 40, 5), (90, 200, 2), (90, 200, 6), (60, 59, 3)])
def test_fit_path_equals_scikit_learn(shape: tuple[int, int, int]) -> None:
    x, y = rows(*shape)
    for solution in fit_path(x, y, shape[2], PENALTIES):
        model = reference(x, y, solution.C)
        assert_same(solution, model)
        np.testing.assert_allclose(softmax(x @ solution.weight.T + solution.bias, axis=1),
                                   model.predict_proba(x), atol=2e-4)  # fmt: skip
        loss = objective(x, y, solution.weight, solution.bias, solution.C)
        assert solution.loss == pytest.approx(loss, rel=1e-9)
        if shape[2] > 2:  # scikit-learn's own parametrisation, so its loss is the same function
            theirs = objective(x, y, model.coef_, model.intercept_, solution.C)
            assert solution.loss == pytest.approx(theirs, rel=1e-4)
        assert solution.converged and solution.gradient_norm <= 1e-6


def test_fit_in_several_slices_equals_fit_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(500, 30, 3)
    whole = fit(x, y, 3, 1.0)
    monkeypatch.setattr(logistic, "NUMBERS_AT_ONCE", 30 * 7)
    monkeypatch.setattr(logistic, "GRAM_NUMBERS_AT_ONCE", 30 * 11)
    monkeypatch.setattr(logistic, "GRAM_COLUMNS", 8)
    parts = fit(x, y, 3, 1.0)
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-5 * np.abs(whole.weight).max())
    assert parts.iterations == whole.iterations  # the Gram matrix is the same one, too


@pytest.mark.parametrize("classes", [2, 4])
def test_sample_weights_equal_repeated_rows(classes: int) -> None:
    x, y = rows(300, 20, classes)
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(np.float64)
    weighted = fit(x, y, classes, 0.5, sample_weight=weight, tolerance=1e-8)
    repeated = np.repeat(np.arange(len(y)), weight.astype(int))
    again = fit(x[repeated], y[repeated], classes, 0.5, tolerance=1e-8)
    np.testing.assert_allclose(weighted.weight, again.weight, atol=1e-5)
    assert weighted.loss == pytest.approx(again.loss, rel=1e-9)
    assert_same(weighted, reference(x, y, 0.5, weight))


def test_multi_label_equals_one_binary_problem_a_label() -> None:
    x, _ = rows(400, 30, 2)
    r = np.random.default_rng(2)
    odds = x @ r.normal(size=(30, 5)) - np.array([0, 1, 2, 4, 0])  # from common to rare
    y = (r.random((400, 5)) < expit(odds)).astype(np.uint8)
    y[:, 4] = 0
    for solution in fit_path(x, y, 5, PENALTIES):
        assert solution.converged
        for label in range(4):
            model = reference(x, y[:, label], solution.C)
            scale = np.linalg.norm(model.coef_)
            assert np.linalg.norm(solution.weight[label] - model.coef_[0]) <= 1e-4 * scale
            assert solution.bias[label] == pytest.approx(model.intercept_[0], rel=1e-3, abs=1e-4)
        assert solution.bias[4] == -1e4 and not solution.weight[4].any()


def test_label_of_every_row_is_always_predicted() -> None:
    x, y = rows(50, 4, 2)
    solution = fit(x, np.stack([y, np.ones(50, int)], axis=1), 2, 1.0)
    assert solution.bias[1] == 1e4 and solution.weight[0].any()


@settings(max_examples=30)
@given(
    n=st.integers(2, 60), d=st.integers(1, 40), classes=st.integers(2, 5), seed=st.integers(0, 10**6),
    log_c=st.floats(-4, 3), duplicates=st.booleans(),
)  # fmt: skip
def test_gradient_norm_equals_that_of_the_definition(
    n: int, d: int, classes: int, seed: int, log_c: float, duplicates: bool
) -> None:
    """Checked by finite differences of the definition at the returned weights."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, d)).astype(np.float32)
    y = r.integers(0, classes, n)
    y[:2] = 0, classes - 1
    if duplicates:
        x, y = np.concatenate([x, x]), np.concatenate([y, y])
        x[:, -1] = x[:, 0]
    penalty = 10.0**log_c
    solution = fit(x, y, classes, penalty)
    assert solution.converged and solution.gradient_norm <= 1e-6
    seen = np.unique(y)
    w, b = solution.weight[seen], solution.bias[seen]
    labels = np.searchsorted(seen, y)
    logits = x.astype(np.float64) @ w.T + b
    error = (softmax(logits, axis=1) - np.eye(len(seen))[labels]) / len(y)
    gradient = error.T @ x + w / (penalty * len(y))
    if len(seen) == 2:  # the first row is not free: it stays 0
        gradient = gradient[1:]
    largest = max(np.abs(gradient).max(), np.abs(error.sum(axis=0)).max())
    assert largest == pytest.approx(solution.gradient_norm, rel=1e-3, abs=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4))
def test_nearby_weights_have_a_higher_loss(seed: int, classes: int) -> None:
    x, y = rows(80, 10, classes, seed=seed)
    solution = fit(x, y, classes, 1.0, tolerance=1e-9)
    r = np.random.default_rng(seed)
    for size in (1e-3, 1e-1):
        w = solution.weight + size * r.normal(size=solution.weight.shape)
        if classes == 2:
            w[0] = 0
        b = solution.bias + size * r.normal(size=solution.bias.shape)
        assert objective(x, y, w, b, 1.0) > solution.loss


def test_fit_path_does_not_depend_on_order_or_other_penalties() -> None:
    x, y = rows(300, 25, 3)
    path = fit_path(x, y, 3, [10.0, 0.01, 1.0, 0.01])
    assert [s.C for s in path] == [10.0, 0.01, 1.0, 0.01]
    for solution in path:
        alone = fit(x, y, 3, solution.C)
        np.testing.assert_allclose(solution.weight, alone.weight, atol=1e-4 * np.abs(alone.weight).max())


def test_fit_path_starts_from_earlier_solutions() -> None:
    x, y = rows(1500, 60, 2)
    penalties = np.logspace(-4, 2, 20).tolist()
    together = sum(s.iterations for s in fit_path(x, y, 2, penalties))
    alone = sum(fit(x, y, 2, c).iterations for c in penalties)
    assert together < 0.6 * alone


@pytest.mark.parametrize("shape", [(600, 40, 2), (600, 40, 5), (90, 200, 3)])
@pytest.mark.parametrize("known", [1.0, 0.8])  # of the rows
def test_a_rough_solution_is_refined_in_few_steps(shape: tuple[int, int, int], known: float) -> None:
    x, y = rows(*shape)
    part = slice(int(known * len(y)))
    (rough,) = walk_path(x[part], y[part], shape[2], [0.1])
    exact = fit(x, y, shape[2], 0.1, tolerance=1e-7)
    refined = refine(x, y, shape[2], rough, tolerance=1e-7)
    assert refined.converged and refined.C == rough.C and refined.iterations < exact.iterations
    np.testing.assert_allclose(refined.weight, exact.weight, atol=1e-5 * np.abs(exact.weight).max())
    np.testing.assert_allclose(refined.bias, exact.bias, atol=1e-5)


def test_a_label_that_the_rough_solution_did_not_see_is_learnt() -> None:
    x, y = rows(300, 8, 2)
    hot = np.stack([y, np.ones(300, int), np.r_[np.zeros(200, int), y[200:]]], axis=1)
    (rough,) = walk_path(x[:200], hot[:200], 3, [1.0])
    assert rough.bias[2] == -1e4
    exact, refined = fit(x, hot, 3, 1.0, tolerance=1e-7), refine(x, hot, 3, rough, tolerance=1e-7)
    np.testing.assert_allclose(refined.weight, exact.weight, atol=1e-4)
    np.testing.assert_allclose(refined.bias, exact.bias, atol=1e-4)
    assert refined.bias[1] == 1e4


def test_correlated_features_take_few_steps() -> None:
    """What the Hessian is for: scikit-learn needs ten times as many at a tolerance 100 times as wide."""
    x, y = rows(2000, 200, 2)
    solution = fit(x, y, 2, 1.0)
    theirs = LogisticRegression(C=1.0, max_iter=5000).fit(x, y).n_iter_[0]
    assert solution.converged and 10 * solution.iterations < theirs


def test_fit_is_deterministic() -> None:
    x, y = rows(300, 40, 3)
    first, second = fit(x, y, 3, 1.0), fit(x, y, 3, 1.0)
    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_fit_reads_hdf5_rows_in_slices(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    x, y = rows(400, 30, 3)
    expected = fit(x, y, 3, 1.0)
    monkeypatch.setattr(logistic, "NUMBERS_AT_ONCE", 30 * 64)
    monkeypatch.setattr(logistic, "GRAM_NUMBERS_AT_ONCE", 30 * 64)
    largest = 0

    class Watched:
        shape = x.shape

        def __init__(self, data: h5py.Dataset) -> None:
            self.data = data

        def __getitem__(self, part: slice) -> np.ndarray:
            nonlocal largest
            found: np.ndarray = self.data[part]
            largest = max(largest, len(found))
            return found

    with h5py.File(tmp_path / "x.h5", "w") as file:
        solution = fit(Watched(file.create_dataset("x", data=x)), y, 3, 1.0)
    np.testing.assert_allclose(solution.weight, expected.weight, atol=1e-5 * np.abs(expected.weight).max())
    assert largest == 64


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_fit_takes_other_dtypes_and_read_only_rows(dtype: type) -> None:
    x, y = rows(200, 10, 2)
    x = x.astype(dtype)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = fit(x, y, 2, 1.0)
    assert_same(solution, reference(x, y, 1.0))
    assert x.dtype == dtype


class TestOddRows:
    def test_constant_features_get_no_weight(self) -> None:
        x, y = rows(100, 5, 2)
        x[:, 2] = 0
        solution = fit(x, y, 2, 1.0)
        assert solution.converged and np.abs(solution.weight[:, 2]).max() == 0
        assert_same(solution, reference(x, y, 1.0))

    def test_constant_features_give_the_shares_of_the_classes(self) -> None:
        y = np.array([0, 1, 1, 2, 2, 2])
        for d in (3, 10):
            solution = fit(np.zeros((6, d), np.float32), y, 3, 1.0)
            assert solution.converged and not solution.weight.any()
            np.testing.assert_allclose(softmax(solution.bias), [1 / 6, 2 / 6, 3 / 6], rtol=1e-6)

    def test_balanced_constant_features_need_no_step(self) -> None:
        solution = fit(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), 2, 1.0)
        assert solution.converged and solution.iterations == 0

    def test_class_of_one_row_equals_scikit_learn(self) -> None:
        x, y = rows(200, 10, 3)
        y = np.where(y == 2, 0, y)
        y[7] = 2
        assert_same(fit(x, y, 3, 1.0), reference(x, y, 1.0))

    @pytest.mark.parametrize("there", [(0, 3), (1, 2, 4)])
    def test_class_without_rows_is_never_predicted(self, there: tuple[int, ...]) -> None:
        x, y = rows(100, 6, len(there))
        y = np.array(there)[y]
        solution = fit(x, y, 5, 1.0)
        unseen = [c for c in range(5) if c not in there]
        assert (solution.bias[unseen] == -1e4).all() and not solution.weight[unseen].any()
        probabilities = softmax(x @ solution.weight.T + solution.bias, axis=1)
        np.testing.assert_allclose(
            probabilities[:, list(there)], reference(x, y, 1.0).predict_proba(x), atol=1e-4
        )

    def test_class_whose_rows_have_weight_0_is_never_predicted(self) -> None:
        x, y = rows(100, 6, 4)
        solution = fit(x, y, 4, 1.0, sample_weight=(y != 1).astype(float))
        kept = y != 1
        expected = fit(x[kept], y[kept], 4, 1.0)
        assert solution.bias[1] == -1e4
        np.testing.assert_allclose(solution.weight, expected.weight, atol=1e-5)

    @pytest.mark.parametrize(("n", "d"), [(60, 5), (60, 100), (2, 3), (2, 1)])
    def test_separable_rows_stay_finite(self, n: int, d: int) -> None:
        r = np.random.default_rng(0)
        y = np.arange(n) % 2
        x = r.normal(size=(n, d)).astype(np.float32)
        x[:, 0] = 3.0 * (2 * y - 1)
        for solution in fit_path(x, y, 2, [1e-3, 1.0, 1e4]):
            assert solution.converged
            assert_same(solution, reference(x, y, solution.C))

    def test_features_with_a_large_mean_are_solved(self) -> None:
        """Standardised features are asked for; others are still solved, as scikit-learn would."""
        x, y = rows(300, 8, 2)
        x = x * 20 + 50
        solution = fit(x, y, 2, 1.0)
        assert solution.converged
        w, b = solution.weight[1], solution.bias[1]
        error = expit(x.astype(np.float64) @ w + b) - y
        assert np.abs(error @ x / 300 + w / 300).max() <= 1e-6

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("d", [4, 300])
    def test_rows_that_are_not_finite_are_refused_by_number(self, bad: float, d: int) -> None:
        x, y = rows(100, d, 2)
        x[[41, 60], 3] = bad
        with pytest.raises(
            HeadError, match="2 rows of the features are NaN or infinite, the first is row 42"
        ):
            fit(x, y, 2, 1.0)

    @pytest.mark.parametrize("size", [1e25, 3e38])
    def test_features_too_large_for_float32_are_refused(self, size: float) -> None:
        x, y = rows(50, 4, 2)
        x = np.clip(x, -1, 1) * np.float32(size)
        with pytest.raises(HeadError, match="standardise"):
            fit(x, y, 2, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalties": [1.0, 0.0]}, "C 0.0"),
        ({"penalties": [-1.0]}, "C -1.0"),
        ({"penalties": [np.nan]}, "C nan"),
        ({"penalties": []}, "no penalties"),
        ({"tolerance": 0.0}, "tolerance 0.0"),
        ({"max_iterations": 0}, "max_iterations 0"),
        ({"y": np.zeros(30, int)}, "single class"),
        ({"y": np.ones((30, 2), int)}, "every label is on all rows or on none"),
        ({"y": np.full(30, 2)}, "from 0 to 1"),
        ({"y": np.full(30, -1)}, "from 0 to 1"),
        ({"y": np.full((30, 2), 2)}, "from 0 to 1"),
        ({"y": np.zeros(30)}, "whole numbers"),
        ({"y": np.zeros(29, int)}, r"labels of shape \(29,\)"),
        ({"x": np.zeros((0, 3), np.float32), "y": np.zeros(0, int)}, r"shape \(0, 3\)"),
        ({"x": np.zeros(30, np.float32)}, r"shape \(30,\)"),
        ({"sample_weight": np.zeros(30)}, "sample weights"),
        ({"sample_weight": np.ones(29)}, "sample weights"),
        ({"sample_weight": np.full(30, -1.0)}, "sample weights"),
        ({"sample_weight": np.full(30, np.nan)}, "sample weights"),
    ],
)
def test_fit_path_refuses_arguments_out_of_range(change: dict, message: str) -> None:
    x, y = rows(30, 3, 2)
    arguments = {"x": x, "y": y, "classes": 2, "penalties": [1.0], **change}
    with pytest.raises(HeadError, match=message):
        fit_path(**arguments)


def test_solution_has_not_converged_after_max_iterations() -> None:
    x, y = rows(300, 40, 3)
    solution = fit(x, y, 3, 10.0, max_iterations=2)
    assert not solution.converged and solution.iterations == 2 and solution.gradient_norm > 1e-6
    assert solution.loss == pytest.approx(objective(x, y, solution.weight, solution.bias, 10.0), rel=1e-9)


def _overlapping(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    x = dice.standard_normal((rows, 12)).astype(np.float32)
    return x, (x[:, 0] + 2 * dice.standard_normal(rows) > 0).astype(np.int64)


def test_fit_exact_of_streamed_rows_equals_that_of_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _overlapping(300, 0)
    stored = x.astype(np.float16)
    kept = fit_exact(LabelledFeatures(stored, y), LabelledFeatures(stored, y), 2, HeadSettings(), seed=0)
    monkeypatch.setattr("featcache.heads.features.IN_MEMORY", 0)
    streamed = fit_exact(LabelledFeatures(stored, y), LabelledFeatures(stored, y), 2, HeadSettings(), seed=0)
    np.testing.assert_array_equal(kept.best.weight, streamed.best.weight)
    np.testing.assert_array_equal(kept.best.bias, streamed.best.bias)
