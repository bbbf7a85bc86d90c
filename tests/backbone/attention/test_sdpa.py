"""SDPA on runs and on buckets of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.attention.sdpa import Scoring, attention_by_buckets, attention_by_runs
from featcache.backbone.packing import PackedLayout
from tests.support.packed_texts import AROUND

BF16 = torch.bfloat16


@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 70), st.sampled_from([15, 16, 17, 31, 32, 33])), min_size=1, max_size=9
    ),
    ordered=st.booleans(),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    causal=st.booleans(),
    scaling=st.sampled_from([None, 0.3]),
)
def test_attention_by_buckets_is_as_exact_as_by_runs(
    lengths: list[int], ordered: bool, heads: tuple[int, int], causal: bool, scaling: float | None
) -> None:
    lengths = sorted(lengths, reverse=True) if ordered else lengths
    layout = PackedLayout.of(np.array(lengths), torch.device("cpu"))
    draw = torch.Generator().manual_seed(sum(lengths))
    exact = [
        torch.randn(1, n, sum(lengths), 16, generator=draw).to(BF16) for n in (heads[0], heads[1], heads[1])
    ]
    scoring = Scoring(scaling, causal)
    reference = attention_by_runs(*(part.double() for part in exact), layout, scoring)
    runs = attention_by_runs(*exact, layout, scoring)
    buckets = attention_by_buckets(*exact, layout, scoring)
    assert (buckets.shape, buckets.dtype) == (runs.shape, BF16)
    usual, error = ((found.double() - reference).abs() for found in (runs, buckets))
    assert error.mean() <= 1.5 * usual.mean() + 1e-4
    assert error.max() <= 2 * usual.max() + 4e-3


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_buckets_equals_runs_in_float64(causal: bool) -> None:
    """In float64 nothing but the grouping of texts is left to differ."""
    layout = PackedLayout.of(np.array(AROUND), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, n, sum(AROUND), 8, generator=draw).double() for n in (4, 2, 2)]
    found = attention_by_buckets(*states, layout, Scoring(causal=causal))
    torch.testing.assert_close(
        found, attention_by_runs(*states, layout, Scoring(causal=causal)), rtol=0, atol=1e-12
    )
