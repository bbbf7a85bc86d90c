"""Batches get smaller where memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.memory_limit import fits, smaller_batches
from featcache.errors import BackboneError


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(30, 60))
def test_smaller_batches_shrinks_them_until_they_fit(lengths: list[int], most: int) -> None:
    known, done = np.array(lengths), []

    def work(rows: np.ndarray) -> None:
        if known[rows].sum() > most:
            raise MemoryError
        done.extend(rows.tolist())

    budget = smaller_batches(known, 500, work)
    assert sorted(done) == list(range(len(lengths)))
    assert budget == 500 or budget >= most // 2


def test_fits_names_a_text_too_long_for_memory() -> None:
    def work(_: np.ndarray) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(BackboneError, match="one text of 7 tokens"):
        fits(work, np.array([0]), 7)
    with pytest.raises(BackboneError) as caught:
        fits(work, np.array([0]), 7, "train fewer blocks")
    assert caught.value.hint == "train fewer blocks"
    with pytest.raises(ValueError, match="another"):
        fits(lambda _: (_ for _ in ()).throw(ValueError("another")), np.array([0]), 7)
