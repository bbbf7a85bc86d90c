from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from featcache.labelling.estimate import AccuracyEstimate, accuracy_interval, labelling_curve


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_interval_is_the_exact_one_of_scipy(one: int, two: int) -> None:
    right, count = min(one, two), max(one, two)
    if not count:
        assert accuracy_interval(0, 0) == (0, 1)
        return
    theirs = binomtest(right, count).proportion_ci(0.95, method="exact")
    assert accuracy_interval(right, count) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("accuracy", [0.6, 0.85, 0.97])
def test_intervals_hold_the_truth_in_95_percent_of_the_draws(accuracy: float) -> None:
    drawn = np.random.default_rng(0).binomial(50, accuracy, 2000)
    held = [low <= accuracy <= high for low, high in (accuracy_interval(int(one), 50) for one in drawn)]
    assert np.mean(held) >= 0.95


def test_more_labels_are_expected_to_go_on_as_before() -> None:
    draw, sizes = np.random.default_rng(1), [20, 40, 80, 160, 320]
    level = draw.random(4000)
    right = [level < 1 - 0.05 - 2 / size for size in sizes]
    curve = labelling_curve(sizes, right)
    assert [point.labels for point in curve.points] == sizes
    assert curve.more is not None
    assert curve.more.gain == pytest.approx(2 / 320 - 2 / 420, abs=0.004)
    assert curve.more.low <= curve.more.gain <= curve.more.high
    assert labelling_curve(sizes[:3], right[:3]).more is None
    assert AccuracyEstimate.of(5, np.zeros(0, bool)) is None
