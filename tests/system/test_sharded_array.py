"""Matrices side by side read like the one that `numpy.concatenate` makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.heads.distributed import ProcessGroup
from featcache.system.sharded_array import JoinedColumns, ShardedColumn, as_array, join_columns, part_of

ROWS = 11


def matrices() -> list[np.ndarray]:
    """Three of them; the last one is a column in two shards."""
    draw = np.random.default_rng(0)
    first, second, third = (draw.normal(size=(ROWS, width)).astype(np.float16) for width in (3, 1, 4))
    shards = [third[:5], third[5:]]
    return [first, second, as_array(ShardedColumn(shards.__getitem__, [0, 5, ROWS], np.float16, (4,)))]


ROW_KEYS = st.one_of(
    st.integers(-ROWS, ROWS - 1),
    st.slices(ROWS),
    st.lists(st.integers(-ROWS, ROWS - 1), min_size=1, max_size=5).map(np.array),
    st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(np.array),
)
KEYS = st.one_of(ROW_KEYS, st.tuples(ROW_KEYS, st.slices(8)), st.just(Ellipsis), st.just((None, 2)))


@given(KEYS)
def test_joined_columns_read_like_the_concatenated_matrix(key: Any) -> None:
    parts = matrices()
    joined, whole = JoinedColumns(parts), np.concatenate([np.asarray(part) for part in parts], axis=1)
    found = joined[key]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, whole[key])


def test_joined_columns_describe_themselves_as_an_array_does() -> None:
    parts = matrices()
    joined, whole = join_columns(parts), np.concatenate([np.asarray(part) for part in parts], axis=1)
    for name in ("shape", "ndim", "size", "dtype", "nbytes"):
        assert getattr(joined, name) == getattr(whole, name)
    np.testing.assert_array_equal(np.asarray(joined, np.float64), whole.astype(np.float64))
    np.testing.assert_array_equal(joined.astype(np.float32), whole.astype(np.float32))
    np.testing.assert_array_equal(part_of(joined, slice(3, 9))[1:4], whole[4:7])
    np.testing.assert_array_equal(ProcessGroup().own_rows(joined)[:], whole)
    assert join_columns(parts[:1]) is parts[0]


def test_joined_columns_want_matrices_of_the_same_rows() -> None:
    with pytest.raises(ValueError, match="do not have the same rows"):
        JoinedColumns([np.zeros((3, 2)), np.zeros((4, 2))])
    with pytest.raises(ValueError, match="do not have the same rows"):
        JoinedColumns([np.zeros((3, 2)), np.zeros(3)])
