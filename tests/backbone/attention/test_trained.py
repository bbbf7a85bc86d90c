"""Attention with its own backward pass equals autograd of `packed_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.attention.trained import KEPT, trained_attention
from featcache.backbone.packing import PackedLayout


def attention_inputs(lengths: Sequence[int], heads: int, shared: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [heads * shared, heads, heads]
    return [
        torch.randn(1, count, sum(lengths), 8, generator=draw, dtype=torch.float64).requires_grad_()
        for count in shapes
    ]


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 2), st.integers(1, 2),
    st.booleans(), st.sampled_from([None, 4, 50]), st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_trained_attention_and_its_gradients_equal_autograd(
    lengths: list[int], heads: int, shared: int, causal: bool, window: int | None, scaling: float | None
) -> None:
    layout = PackedLayout.of(np.array(lengths), torch.device("cpu"))
    module = torch.nn.Module()
    results = []
    for call in (trained_attention, packed_attention):
        inputs = attention_inputs(lengths, heads, shared)
        out, _ = call(
            module, *inputs, None, packed=layout, scaling=scaling, is_causal=causal, sliding_window=window
        )
        weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
        (out * weights).sum().backward()
        results.append([out.detach(), *(each.grad for each in inputs)])
    for ours, reference in zip(*results, strict=True):
        assert ours is not None and reference is not None
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_trained_attention_in_16_bits_is_padded_and_as_exact(causal: bool, window: int | None) -> None:
    """Lengths around multiples of 16, where the padding is; beside float64 on the same rounded numbers."""
    lengths = [1, 15, 16, 17, 33, 47]
    layout = PackedLayout.of(np.array(lengths), torch.device("cpu"))
    rounded = [each.detach().bfloat16() for each in attention_inputs(lengths, 2, 1)]
    results = []
    for call, dtype in ((trained_attention, torch.bfloat16), (packed_attention, torch.float64)):
        inputs = [each.to(dtype).detach().clone().requires_grad_() for each in rounded]
        out, _ = call(
            torch.nn.Module(), *inputs, None, packed=layout, is_causal=causal, sliding_window=window
        )
        out.double().cos().sum().backward()
        results.append(
            [out.detach().double(), *(each.grad.double() for each in inputs if each.grad is not None)]
        )
    for ours, reference in zip(*results, strict=True):
        assert float((ours - reference).abs().max()) <= 2e-2 * float(reference.abs().max())


def test_trained_attention_of_a_long_text_whose_weights_are_not_kept() -> None:
    lengths = [KEPT + 1, 3]
    layout = PackedLayout.of(np.array(lengths), torch.device("cpu"))
    results = []
    for call in (trained_attention, packed_attention):
        inputs = attention_inputs(lengths, 1, 1)
        out, _ = call(torch.nn.Module(), *inputs, None, packed=layout, is_causal=False)
        out.pow(2).sum().backward()
        results.append([each.grad for each in inputs])
    for ours, reference in zip(*results, strict=True):
        assert ours is not None and reference is not None
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-12)
