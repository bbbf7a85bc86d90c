"""Packed texts for tests of attention: their layout, random states, and attention by one dense mask."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

from featcache.backbone.packing import PackedLayout

SOME = st.lists(st.integers(1, 12) | st.integers(14, 40), min_size=1, max_size=12)  # lengths of texts
AROUND = (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 16, 15, 33, 2)  # tokens, about the steps of a bucket


def layout_of(lengths: list[int]) -> PackedLayout:
    """The layout of texts of so many tokens, on the CPU."""
    return PackedLayout.of(np.array(lengths, dtype=np.int64), torch.device("cpu"))


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    *,
    causal: bool,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """All tokens against all others in float64, one mask for everything: `[1, T, heads, d]`."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.cat([torch.arange(length) for length in lengths])
    sees = text[:, None] == text[None, :]
    ahead = place[None, :] - place[:, None]
    if causal:
        sees &= ahead <= 0
    if window is not None:
        sees &= ahead.abs() < window
    shared = query.shape[1] // key.shape[1]
    q = query[0].double()
    k, v = (states[0].double().repeat_interleave(shared, dim=0) for states in (key, value))
    scores = q @ k.transpose(1, 2) * (scaling if scaling is not None else 1 / math.sqrt(q.shape[-1]))
    weights = scores.masked_fill(~sees, -math.inf).softmax(-1)
    return (weights @ v).transpose(0, 1)[None].float()


def states_of(lengths: list[int], heads: int, key_heads: int) -> tuple[torch.Tensor, ...]:
    """Random query, key and value of the texts, `[1, heads, T, 8]`."""
    draw = torch.Generator().manual_seed(sum(lengths) + heads)
    return tuple(torch.randn(1, n, sum(lengths), 8, generator=draw) for n in (heads, key_heads, key_heads))
