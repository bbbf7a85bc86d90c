"""Leaked rows: those whose key an earlier split has."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.evaluation.leaks import NORMALISED, Leaks, leaked_rows

KEYS = st.lists(st.sampled_from([0, 1, 2, 3, 5, 2**63, 2**64 - 1]), max_size=12)


@given(KEYS, KEYS, KEYS)
def test_leaked_rows_are_those_of_sets(train: list[int], validation: list[int], test: list[int]) -> None:
    splits = {"train": train, "validation": validation, "test": test}
    found = leaked_rows({name: np.array(keys, np.uint64) for name, keys in splits.items()})
    assert found["validation"].tolist() == [key in set(train) for key in validation]
    assert found["test"].tolist() == [key in {*train, *validation} for key in test]
    assert "train" not in found and all(rows.dtype == bool for rows in found.values())


def test_clean_rows_are_named_only_where_some_rows_leak() -> None:
    leaks = Leaks(NORMALISED, {"validation": np.array([True, True]), "test": np.array([False, True, False])})
    clean = leaks.clean("test")
    assert clean is not None and clean.tolist() == [0, 2]
    assert leaks.clean("validation") is None  # every row leaks: all are used
    assert leaks.clean("train") is None
    assert Leaks(NORMALISED, {"test": np.zeros(3, bool)}).clean("test") is None
    assert Leaks(NORMALISED, {"test": np.zeros(0, bool)}).clean("test") is None
