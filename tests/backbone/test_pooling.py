"""Poolings of packed token states."""

from __future__ import annotations

import torch
from hypothesis import given

from featcache.backbone.pooling import POOLINGS
from tests.support.packed_texts import SOME, layout_of


@given(SOME)
def test_poolings_equal_a_loop_over_texts(lengths: list[int]) -> None:
    states = torch.randn(sum(lengths), 6, generator=torch.Generator().manual_seed(sum(lengths)))
    texts = states.split(lengths)
    expected = {
        "cls": [text[0] for text in texts],
        "last": [text[-1] for text in texts],
        "mean": [text.sum(0) / len(text) for text in texts],
        "max": [text.max(0).values for text in texts],
        "weightedmean": [
            sum((i + 1) * token for i, token in enumerate(text)) / (len(text) * (len(text) + 1) / 2)
            for text in texts
        ],
        "mean_sqrt_len": [text.sum(0) / len(text) ** 0.5 for text in texts],
    }
    assert set(POOLINGS) == set(expected)
    for name, vectors in expected.items():
        found = POOLINGS[name](states, layout_of(lengths))
        torch.testing.assert_close(found, torch.stack(vectors), rtol=0, atol=2e-6)


def test_pool_mean_of_16_bit_states_is_taken_in_float32() -> None:
    states = torch.full((3000, 1), 1.0, dtype=torch.bfloat16)
    states[::3] = 1.5
    found = POOLINGS["mean"](states, layout_of([3000]))
    assert found.dtype == torch.float32
    assert abs(found.item() - 3.5 / 3) < 1e-5
