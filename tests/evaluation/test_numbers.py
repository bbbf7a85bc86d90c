"""Metrics of predicted numbers against scikit-learn and SciPy, and the laws that they have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from featcache.errors import UsageError
from featcache.evaluation.numbers import NUMBER_METRICS, number_intervals, paired_errors, score_numbers

FEW = st.integers(-4, 4).map(float)  # many ties
ROWS = st.lists(st.tuples(FEW | st.floats(-1e3, 1e3), FEW | st.floats(-1e3, 1e3)), min_size=2, max_size=40)


def columns(rows: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = np.array(rows).T
    return true, predicted


@given(ROWS)
def test_metrics_are_those_of_scikit_learn_and_scipy(rows: list[tuple[float, float]]) -> None:
    true, predicted = columns(rows)
    found = score_numbers(true, predicted)
    assert found.mae == pytest.approx(mean_absolute_error(true, predicted))
    assert found.rmse == pytest.approx(np.sqrt(mean_squared_error(true, predicted)))
    if np.ptp(true) > 1e-3:
        assert found.r2 == pytest.approx(r2_score(true, predicted), rel=1e-6, abs=1e-6)
    if np.ptp(true) > 0 and np.ptp(predicted) > 0:
        assert found.spearman == pytest.approx(spearmanr(true, predicted).statistic, abs=1e-9)
    else:
        assert found.spearman == 0


@given(ROWS, st.floats(0.5, 3), st.floats(-50, 50))
def test_another_unit_changes_errors_by_its_factor_and_nothing_else(
    rows: list[tuple[float, float]], factor: float, shift: float
) -> None:
    true, predicted = columns(rows)
    before = score_numbers(true, predicted)
    after = score_numbers(true * factor + shift, predicted * factor + shift)
    assert after.mae == pytest.approx(factor * before.mae, rel=1e-6, abs=1e-9)
    assert after.rmse == pytest.approx(factor * before.rmse, rel=1e-6, abs=1e-9)
    if np.ptp(true) > 1e-3:
        assert after.r2 == pytest.approx(before.r2, rel=1e-6, abs=1e-6)


@given(st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=30))
def test_the_mean_explains_nothing_and_the_labels_themselves_everything(labels: list[float]) -> None:
    true = np.array(labels)
    mean, same = score_numbers(true, np.full(len(true), true.mean())), score_numbers(true, true)
    assert (same.mae, same.rmse, same.r2) == (0, 0, 1)
    if np.ptp(true) > 0:
        assert mean.r2 == pytest.approx(0, abs=1e-9) and mean.spearman == 0
        assert same.spearman == pytest.approx(1)
        assert score_numbers(true, np.exp(true / 20)).spearman == pytest.approx(1)  # any growing function


def test_equal_labels_have_no_variance_to_explain() -> None:
    true = np.full(5, 0.1)
    assert score_numbers(true, true).r2 == 1
    assert score_numbers(true, true + 1).r2 == 0  # as in scikit-learn
    assert r2_score(true, true + 1) == 0


def test_large_numbers_that_differ_little_keep_their_digits() -> None:
    small = np.arange(20.0)
    near, far = (score_numbers(small + shift, small[::-1] + shift) for shift in (0.0, 1e9))
    assert far.summary == pytest.approx(near.summary, rel=1e-6)


def test_intervals_contain_the_score_and_are_those_of_resampled_rows() -> None:
    dice = np.random.default_rng(0)
    true = dice.normal(size=80).round(1)
    predicted = true + dice.normal(size=80).round(1)
    found = number_intervals(true, predicted, resamples=500, seed=3)
    scores = score_numbers(true, predicted).summary
    drawn = np.random.default_rng(3).integers(80, size=(500, 80), dtype=np.uint32)
    each = [score_numbers(true[rows], predicted[rows]).summary for rows in drawn]
    for name in NUMBER_METRICS:
        low, high = found[name]
        assert low < scores[name] < high
        assert [low, high] == pytest.approx(np.percentile([one[name] for one in each], [2.5, 97.5]))


def test_paired_errors_tell_a_nearer_head_from_chance() -> None:
    dice = np.random.default_rng(1)
    true = dice.normal(size=300)
    noise = dice.normal(size=300)
    near, far, other = true + 0.5 * noise, true + noise, true + 0.5 * dice.permutation(noise)
    better = paired_errors(true, far, near)
    assert better.mae.value < better.mae.high < 0 and better.mae.p < 0.001 > better.rmse.p
    assert better.rmse.value == pytest.approx(score_numbers(true, near).rmse - score_numbers(true, far).rmse)
    chance = paired_errors(true, near, other)
    assert chance.mae.p > 0.05 < chance.rmse.p and chance.mae.low < 0 < chance.mae.high
    back = paired_errors(true, near, far)
    assert (back.mae.low, back.mae.high) == pytest.approx((-better.mae.high, -better.mae.low))
    assert paired_errors(true, near, near).mae.p == 1


@pytest.mark.parametrize(
    ("true", "predicted"),
    [(np.zeros(2), np.zeros(3)), (np.zeros((2, 1)), np.zeros((2, 1))), (np.zeros(2), np.array([0, np.nan]))],
)
def test_numbers_that_do_not_fit_are_refused(true: np.ndarray, predicted: np.ndarray) -> None:
    with pytest.raises(UsageError):
        score_numbers(true, predicted)


def test_no_rows_have_no_scores() -> None:
    assert np.isnan(list(score_numbers(np.zeros(0), np.zeros(0)).summary.values())).all()
    assert np.isnan(list(number_intervals(np.zeros(0), np.zeros(0)).values())).all()
