"""Rows drawn by class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.runs.weighted_rows import draw_per_class


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(1, 30), st.integers(-(2**70), 2**70)
)
def test_every_class_has_the_count_or_all_its_rows(labels: list[int], count: int, seed: int) -> None:
    y = np.array(labels)
    rows = draw_per_class(y, count, seed)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(y, minlength=6)
    assert np.bincount(y[rows], minlength=6).tolist() == np.minimum(counts, count).tolist()
    assert set(rows) <= set(draw_per_class(y, count + 3, seed))
    np.testing.assert_array_equal(rows, draw_per_class(y, count, seed))


def test_seeds_differ_and_multi_label_rows_count_by_their_rarest_label() -> None:
    y = np.zeros(100, np.int64)
    assert draw_per_class(y, 10, 1).tolist() != draw_per_class(y, 10, 2).tolist()
    several = np.zeros((9, 2), np.uint8)
    several[:, 0] = 1
    several[:3, 1] = 1
    rows = draw_per_class(several, 2, 0)
    assert (rows < 3).sum() == 2 and len(rows) == 4


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--rows-per-class 0"):
        draw_per_class(np.arange(3), 0, 0)
