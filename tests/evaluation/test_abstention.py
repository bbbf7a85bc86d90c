"""Thresholds with a guarantee: what they promise holds, and the curve is the one of its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.evaluation.abstention import (
    ScoredRows,
    Selection,
    fewest_rows,
    highest_risk,
    risk_coverage,
    threshold_for_coverage,
    threshold_for_error,
)


def drawn(rows: int, seed: int, *, sure: float = 5.0) -> ScoredRows:
    """Rows whose probability is right as often as it says."""
    draw = np.random.default_rng(seed)
    score = 0.5 + 0.5 * draw.beta(sure, 1, rows)
    return ScoredRows(score, draw.random(rows) > score)


def test_highest_risk_is_the_bound_of_clopper_and_pearson() -> None:
    from scipy.stats import binomtest

    for wrong, answered in ((0, 1), (0, 59), (3, 100), (50, 51), (17, 1000)):
        exact = binomtest(wrong, answered, alternative="less").proportion_ci(0.95, "exact").high
        assert highest_risk(wrong, answered, 0.95) == pytest.approx(exact, abs=1e-9)
    assert highest_risk(0, 0, 0.95) == highest_risk(4, 4, 0.95) == 1.0


@given(st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_fewest_rows_are_just_enough(max_error: float, confidence: float) -> None:
    rows = fewest_rows(max_error, confidence)
    assert highest_risk(0, rows, confidence) <= max_error + 1e-9
    assert rows == 1 or highest_risk(0, rows - 1, confidence) > max_error - 1e-9


@pytest.mark.parametrize("max_error", [0.04, 0.05, 0.08])
def test_the_risk_exceeds_the_level_no_more_often_than_the_guarantee_says(max_error: float) -> None:
    """200 draws of validation rows; the true risk is that of many rows from the same source."""
    many, confidence = drawn(200_000, 999), 0.9
    above = found = 0
    for seed in range(200):
        choice, test = drawn(300, 2 * seed), drawn(600, 2 * seed + 1)
        threshold = threshold_for_error(choice, test, max_error, confidence)
        if threshold is not None:
            found += 1
            above += Selection.of(many, threshold).risk > max_error
    # 20 of 200 are allowed; more than 33 would come once in a thousand such tests
    assert above <= 33 and found >= 60


def test_the_highest_coverage_that_the_rows_support_is_taken() -> None:
    """With many rows the threshold comes near the best one: the risk is just below the level."""
    threshold = threshold_for_error(drawn(20_000, 1), drawn(20_000, 2), 0.05, 0.95)
    assert threshold is not None
    assert 0.044 < Selection.of(drawn(200_000, 3), threshold).risk <= 0.05


def test_a_head_that_is_good_enough_answers_everything_and_a_bad_one_nothing() -> None:
    good, bad = drawn(400, 1, sure=200), drawn(400, 2, sure=0.1)
    assert threshold_for_error(good, drawn(400, 3, sure=200), 0.1, 0.95) == 0.0
    assert threshold_for_error(bad, drawn(400, 4, sure=0.1), 0.01, 0.95) is None


def test_the_sequence_does_not_depend_on_the_tested_labels() -> None:
    """Thresholds are scores of the choice rows, or 0: what is tested was fixed before."""
    choice, test = drawn(300, 5), drawn(600, 6)
    threshold = threshold_for_error(choice, test, 0.06, 0.9)
    assert threshold is not None
    assert threshold in {0.0, *(np.floor(choice.score * 1e6) / 1e6).tolist()}  # six digits of them


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.98])
def test_coverage_is_below_the_level_no_more_often_than_the_guarantee_says(coverage: float) -> None:
    many, below = drawn(100_000, 999).score, 0
    for seed in range(200):
        threshold = threshold_for_coverage(drawn(500, seed).score, coverage, 0.9)
        assert threshold is not None
        below += (many >= threshold).mean() < coverage
    assert below <= 33


def test_a_coverage_that_the_rows_cannot_show() -> None:
    score = drawn(100, 0).score
    assert fewest_rows(1 - 0.99, 0.95) == 299
    assert threshold_for_coverage(score, 0.99, 0.95) is None
    assert threshold_for_coverage(drawn(299, 0).score, 0.99, 0.95) is not None
    assert threshold_for_coverage(score, 1.0, 0.95) == 0.0


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_the_curve_is_the_risk_at_each_coverage(rows: list[tuple[float, bool]]) -> None:
    score, wrong = (np.array(column) for column in zip(*rows, strict=True))
    found = ScoredRows(score.astype(float), wrong.astype(bool))
    points = risk_coverage(found).points
    expected = [Selection.of(found, one) for one in sorted(set(score.tolist()), reverse=True)]
    assert points == tuple((one.coverage, one.risk) for one in expected)
    assert points[-1] == (1.0, wrong.mean())


def test_the_area_is_the_mean_risk_and_least_for_the_best_order() -> None:
    wrong = np.array([False, False, True, True])
    best = risk_coverage(ScoredRows(np.array([0.9, 0.8, 0.7, 0.6]), wrong)).area
    assert best == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    worst = risk_coverage(ScoredRows(np.array([0.6, 0.7, 0.8, 0.9]), wrong)).area
    assert worst == pytest.approx((1 + 1 + 2 / 3 + 2 / 4) / 4)
    tied = risk_coverage(ScoredRows(np.full(4, 0.5), wrong)).area
    assert tied == pytest.approx(0.5)  # any order of equals is as good
    assert len(risk_coverage(drawn(5000, 1)).points) == 100
    with pytest.raises(UsageError, match="needs rows"):
        risk_coverage(ScoredRows(np.zeros(0), np.zeros(0, bool)))


def test_a_selection_without_answers() -> None:
    found = Selection.of(drawn(5, 0), 2.0)
    assert found == (5, 0, 0) and found.coverage == 0 and math.isnan(found.risk)
