"""Exact logistic regression against scikit-learn run to the end of its precision."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from featcache import exact
from featcache.errors import HeadError
from featcache.heads import softmax


def correlated(rows: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features of decaying spectrum; a tenth of the labels is drawn at random."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(width, width)) * (np.arange(1, width + 1) ** -0.7)[:, None]
    x = draw.normal(size=(rows, width)) @ mixing
    y = (x @ draw.normal(size=(width, classes)) + 3 * draw.normal(size=(rows, classes))).argmax(1)
    y = np.where(draw.random(rows) < 0.1, draw.integers(0, classes, rows), y)
    y[:classes] = np.arange(classes)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y


def reference(x: np.ndarray, y: np.ndarray, C: float, weight: np.ndarray | None = None) -> LogisticRegression:
    model = LogisticRegression(C=C, tol=1e-10, max_iter=20_000)
    return model.fit(x.astype(np.float64), y, sample_weight=weight)


def mean_objective(x: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, C: float) -> float:
    """The penalty counted as scikit-learn parametrises it: one row of weights for two classes."""
    probabilities = softmax(x.astype(np.float64) @ W.T + b)
    loss = -np.log(probabilities[np.arange(len(y)), y]).mean()
    return float(loss + (W**2).sum() / (2 * C * len(y)))


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(("rows", "width", "classes"), [(400, 30, 2), (500, 20, 5), (60, 90, 2), (60, 90, 3)])
def test_it_is_scikit_learns_optimum(rows: int, width: int, classes: int, C: float) -> None:
    x, y = correlated(rows, width, classes)
    found, model = exact.fit(x, y, classes, C, tolerance=1e-8), reference(x, y, C)
    assert found.converged and found.gradient_norm <= 1e-8
    assert exact.fit(x, y, classes, C).gradient_norm <= 1e-6
    if classes == 2:
        assert not found.weight[0].any()
        pairs = ((found.weight[1], model.coef_[0]), (found.bias[1] - found.bias[0], model.intercept_[0]))
    else:
        pairs = ((found.weight, model.coef_), (found.bias - found.bias.mean(), model.intercept_))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(np.abs(model.coef_).max(), 1e-2))
    best = mean_objective(x, y, found.weight, found.bias, C)
    W, b = model.coef_, model.intercept_
    if classes == 2:
        W, b = np.vstack([0 * W, W]), np.append(0.0, b)
    assert best == pytest.approx(mean_objective(x, y, W, b, C), rel=1e-6)
    assert found.loss == pytest.approx(best, rel=1e-6)


def test_a_path_is_its_fits() -> None:
    x, y = correlated(300, 25, 3)
    penalties = [10.0, 1e-3, 0.1]
    for C, found in zip(penalties, exact.fit_path(x, y, 3, penalties), strict=True):
        alone = exact.fit(x, y, 3, C)
        assert found.C == C and found.converged
        np.testing.assert_allclose(found.weight, alone.weight, rtol=0, atol=2e-4 * np.abs(alone.weight).max())


def test_weighted_rows_are_repeated_rows() -> None:
    x, y = correlated(150, 10, 3)
    weight = np.random.default_rng(1).integers(1, 4, len(y)).astype(np.float64)
    found, model = exact.fit(x, y, 3, 0.5, sample_weight=weight), reference(x, y, 0.5, weight)
    np.testing.assert_allclose(found.weight, model.coef_, rtol=0, atol=1e-4 * np.abs(model.coef_).max())


def test_several_labels_are_problems_of_their_own() -> None:
    x, first = correlated(300, 15, 2)
    second = correlated(300, 15, 2, seed=1)[1]
    y = np.stack([first, second, np.ones(300, int)], axis=1).astype(np.uint8)
    found = exact.fit(x, y, 3, 0.3)
    for label in (0, 1):
        model = reference(x, y[:, label], 0.3)
        ours = expit(x @ found.weight[label] + found.bias[label])
        np.testing.assert_allclose(ours, model.predict_proba(x)[:, 1], rtol=0, atol=1e-4)
    assert (expit(x @ found.weight[2] + found.bias[2]) > 0.99).all()


def test_a_class_that_train_lacks_is_never_said() -> None:
    x, y = correlated(200, 10, 2)
    found = exact.fit(x, 2 * y, 4, 0.5)
    assert set((x @ found.weight.T + found.bias).argmax(1)) <= {0, 2}
    model = reference(x, y, 0.5)
    probabilities = softmax(x @ found.weight.T + found.bias)
    np.testing.assert_allclose(probabilities[:, 2], model.predict_proba(x)[:, 1], rtol=0, atol=1e-4)


def test_separable_constant_and_repeated_rows_have_finite_answers() -> None:
    x = np.repeat(np.array([[1, 0, 2], [-1, 0, 2]], np.float32), 20, axis=0)
    y = np.repeat([0, 1], 20)
    found = exact.fit(x, y, 2, 100.0)
    assert np.isfinite(found.weight).all() and found.converged
    assert ((x @ found.weight.T + found.bias).argmax(1) == y).all()


@pytest.mark.parametrize(
    ("x", "y", "C"),
    [
        (np.full((4, 2), np.nan, np.float32), np.array([0, 1, 0, 1]), 1.0),
        (np.eye(4, dtype=np.float32), np.zeros(4, int), 1.0),
        (np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), 0.0),
        (np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), float("nan")),
    ],
    ids=["nan", "one class", "C 0", "C nan"],
)
def test_what_has_no_answer(x: np.ndarray, y: np.ndarray, C: float) -> None:
    with pytest.raises(HeadError):
        exact.fit(x, y, 2, C)


def test_a_penalty_by_validation() -> None:
    x, y = correlated(300, 25, 3)
    held_x, held_y = x[200:], y[200:]
    penalties = [1e-4, 1e-2, 1.0]
    chosen = exact.choose_penalty(x[:200], y[:200], 3, penalties, held_x, held_y)
    scores = []
    for C in penalties:
        model = reference(x[:200], y[:200], C)
        p = model.predict_proba(held_x)
        accuracy = (p.argmax(1) == held_y).mean()
        scores.append((accuracy, np.log(p[np.arange(len(held_y)), held_y]).mean()))
    assert penalties[max(range(3), key=lambda n: scores[n])] == chosen.C


def test_a_penalty_by_cross_validation() -> None:
    x, y = correlated(200, 20, 2)
    found = exact.cross_validate_penalty(x, y, 2, [1e-3, 1.0], folds=4)
    assert found.accuracy.shape == found.log_loss.shape == (2, 4)
    again = exact.cross_validate_penalty(x, y, 2, [1e-3, 1.0], folds=4)
    np.testing.assert_array_equal(found.accuracy, again.accuracy)
    ranks = list(zip(found.accuracy.mean(1), -found.log_loss.mean(1), strict=True))
    assert found.penalties[ranks.index(max(ranks))] == found.C
    rare = np.append(np.zeros(197, int), [1, 1, 1])
    with pytest.raises(HeadError, match="fold"):
        exact.cross_validate_penalty(x, rare, 2, [1.0], folds=4)
