"""The scale of numbers, and intervals that hold as often as they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import HeadError
from featcache.heads.numbers.scale import (
    NumberScale,
    PredictionInterval,
    conformal_interval,
    rows_for,
)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=20))
def test_a_scale_takes_labels_to_logits_and_back(labels: list[float]) -> None:
    y = np.array(labels)
    if (y == y[0]).all() or y.std() == 0:
        return
    scale = NumberScale.of(y)
    logits = scale.logits(y)
    assert abs(logits.mean()) < 1e-6 and logits.std() == pytest.approx(1)
    np.testing.assert_allclose(scale.numbers(logits[:, None]), y, rtol=1e-9, atol=1e-9 * np.abs(y).max())


def test_equal_labels_have_no_scale() -> None:
    with pytest.raises(HeadError, match="single number"):
        NumberScale.of(np.full(3, 2.5))


@given(st.integers(1, 200), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_half_width_is_the_conformal_quantile(rows: int, level: float) -> None:
    errors = np.random.default_rng(rows).permutation(rows) + 1.0  # 1, ..., n in some order
    place = math.ceil(round((rows + 1) * level, 9))
    if place > rows:
        with pytest.raises(HeadError, match=rf"needs {rows_for(level)} .* there are {rows}\n"):
            conformal_interval(errors, level)
        assert rows < rows_for(level)
    else:
        assert conformal_interval(errors, level).half_width == place
        assert rows >= rows_for(level)


@pytest.mark.parametrize(("level", "rows"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_rows_that_a_level_needs(level: float, rows: int) -> None:
    assert rows_for(level) == rows


def test_new_numbers_are_within_the_interval_as_often_as_promised() -> None:
    """The mean coverage over draws of calibration rows is level to level + 1 / (n + 1)."""
    dice = np.random.default_rng(0)
    for level, rows in ((0.9, 19), (0.8, 50)):
        inside = []
        for _ in range(2000):
            errors = np.abs(dice.standard_t(3, rows + 20))
            inside.append(np.mean(errors[rows:] <= conformal_interval(errors[:rows], level).half_width))
        assert level - 0.01 < np.mean(inside) < level + 1 / (rows + 1) + 0.01


@pytest.mark.parametrize("odd", [{"level": 1.0}, {"half_width": -1.0}, {"half_width": math.inf}, {"rows": 0}])
def test_odd_intervals_are_refused(odd: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        PredictionInterval(**({"level": 0.9, "half_width": 1.0, "rows": 9} | odd))  # type: ignore[arg-type]
