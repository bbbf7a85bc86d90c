"""Attention in packed batches equals a dense mask and never crosses from one text to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.attention.packed import IMPLEMENTATION, packed_attention, register
from featcache.errors import BackboneError
from tests.support.packed_texts import SOME, dense, layout_of, states_of


@given(
    lengths=SOME,
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 3, 8, 50]),
    scaling=st.sampled_from([None, 0.7]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_packed_attention_equals_a_dense_mask(
    lengths: list[int],
    heads: tuple[int, int],
    causal: bool,
    window: int | None,
    scaling: float | None,
    dtype: torch.dtype,
) -> None:
    states = tuple(part.to(dtype) for part in states_of(lengths, *heads))
    found, weights = packed_attention(
        SimpleNamespace(is_causal=causal),  # type: ignore[arg-type]
        *states,
        None,
        packed=layout_of(lengths),
        scaling=scaling,
        sliding_window=window,
    )
    assert weights is None
    assert (found.shape, found.dtype) == ((1, sum(lengths), heads[0], 8), dtype)
    expected = dense(*states, lengths, causal=causal, window=window, scaling=scaling)
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@given(
    lengths=SOME,
    changed=st.integers(0, 11),
    causal=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_packed_attention_of_one_text_ignores_the_bits_of_the_others(
    lengths: list[int], changed: int, causal: bool, dtype: str
) -> None:
    """Not even NaN gets across."""
    layout, changed = layout_of(lengths), changed % len(lengths)
    first, last = int(layout.cu_seqlens[changed]), int(layout.cu_seqlens[changed + 1])
    states = [part.to(getattr(torch, dtype)) for part in states_of(lengths, 4, 2)]
    module: Any = SimpleNamespace(is_causal=causal)
    before, _ = packed_attention(module, *states, None, packed=layout)
    for part in states:
        part[:, :, first:last] = torch.nan
    after, _ = packed_attention(module, *states, None, packed=layout)
    assert after[:, first:last].isnan().all()
    others = [token for token in range(sum(lengths)) if not first <= token < last]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "asked", "causal"),
    [
        (SimpleNamespace(is_causal=True), None, True),
        (SimpleNamespace(is_causal=False), None, False),
        (SimpleNamespace(is_causal=True), False, False),
        (SimpleNamespace(is_causal=False), True, True),
        (SimpleNamespace(), None, True),  # as transformers' own attention functions have it
    ],
)
def test_packed_attention_follows_is_causal(module: Any, asked: bool | None, causal: bool) -> None:
    lengths = [5, 5, 2]
    states = states_of(lengths, 2, 2)
    found, _ = packed_attention(module, *states, None, packed=layout_of(lengths), is_causal=asked)
    expected = dense(*states, lengths, causal=causal, window=None, scaling=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("mask", "others"),
    [
        (None, {}),  # the layout did not arrive
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), {"packed": layout_of([4])}),
        (None, {"packed": layout_of([4]), "softcap": 30.0}),
        (None, {"packed": layout_of([4]), "position_bias": torch.zeros(1)}),
        (None, {"packed": layout_of([4]), "s_aux": torch.zeros(2)}),
    ],
)
def test_packed_attention_refuses_what_it_cannot_do(mask: Any, others: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match="cannot run packed"):
        packed_attention(SimpleNamespace(is_causal=False), *states_of([4], 2, 2), mask, **others)  # type: ignore[arg-type]


def test_register_twice_is_harmless() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for _ in range(2):
        register(IMPLEMENTATION, packed_attention)
    assert AttentionInterface()[IMPLEMENTATION] is packed_attention
    assert AttentionMaskInterface()[IMPLEMENTATION](1, 2, anything=3) is None
