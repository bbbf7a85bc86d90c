"""Attention within each text of a packed batch, with a backward pass that is fast on CPUs.

Autograd of `packed_attention` would make, for every text, gradients as large as the batch and add them
up; on CPUs that takes several times as long as all else in a block. Here each text is a few batched
products on views of the packed tensors, forward and backward, and its gradients are written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.attention.sdpa import Scoring, distances, repeat_heads
from featcache.backbone.packing import PAD_STEP, NotPackable
from featcache.backbone.private_torch import softmax_backward

IMPLEMENTATION = "featcache_trained"
KEPT = 1024  # tokens of a text up to which its attention weights are kept for the backward pass


def trained_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What `packed_attention` gives, for training; attention weights are never dropped out.

    Args:
        query: `[1, heads, T, d]`; key and value alike, with as many or fewer heads.
        options: see `packed_attention`.

    Returns:
        `[1, T, heads, d]` and no attention weights.
    """
    if query.device.type != "cpu":
        return packed_attention(module, query, key, value, attention_mask, **options)
    packed = options.get("packed")
    if packed is None or attention_mask is not None:
        raise NotPackable(f"{type(module).__name__} cannot be trained packed")
    scoring = Scoring.of(module, options, packed.longest)
    key, value = (repeat_heads(states, query.shape[1]) for states in (key, value))
    scale = query.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    attended: torch.Tensor = _TextAttention.apply(query * scale, key, value, packed.lengths.tolist(), scoring)
    return attended, None


class _TextAttention(torch.autograd.Function):
    """softmax(q k^T) v of each text; q is scaled already."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Sequence[int],
        scoring: Scoring,
    ) -> torch.Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        kept: list[torch.Tensor] = []
        start = 0
        for length in lengths:
            q, k, v = (_padded(states, start, length) for states in (query, key, value))
            weights = _weights(q, k, length, scoring)
            _write(output.transpose(1, 2), start, length, torch.bmm(weights, v))
            if length <= KEPT:
                kept.append(weights)
            start += length
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.scoring = lengths, scoring
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        to_query, to_key, to_value = (_like(states) for states in (query, key, value))
        given = gradients[0].transpose(1, 2)
        left, start = iter(kept), 0
        for length in ctx.lengths:
            q, k, v, upper = (_padded(states, start, length) for states in (query, key, value, given))
            weights = next(left) if length <= KEPT else _weights(q, k, length, ctx.scoring)
            _write(to_value, start, length, torch.bmm(weights.transpose(1, 2), upper))
            scores = softmax_backward(torch.bmm(upper, v.transpose(1, 2)), weights)
            _write(to_query, start, length, torch.bmm(scores, k))
            _write(to_key, start, length, torch.bmm(scores.transpose(1, 2), q))
            start += length
        return to_query, to_key, to_value, None, None


def _padded(states: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """One text's part of `[1, heads, T, d]`, in 16 bits with zeros up to a multiple of PAD_STEP tokens.

    oneDNN prepares a product again for each shape it has not seen lately, which takes longer than the
    product: so there should be few shapes. Softmax, too, is twice as fast at such lengths.
    """
    text = states[0, :, start : start + length]
    more = -length % PAD_STEP if states.element_size() == 2 else 0
    return functional.pad(text, (0, 0, 0, more)) if more else text


def _write(packed: torch.Tensor, start: int, length: int, text: torch.Tensor) -> None:
    """Put one text `[heads, length or more, d]` into `[1, heads, T, d]`."""
    packed[0, :, start : start + length] = text[:, :length]


def _like(states: torch.Tensor) -> torch.Tensor:
    """An empty `[1, heads, T, d]` that lies as the linear layer wants its gradient: token by token."""
    return torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _weights(query: torch.Tensor, key: torch.Tensor, length: int, scoring: Scoring) -> torch.Tensor:
    """Attention weights `[heads, padded, padded]` of one text; 0 for and towards what is padding."""
    scores = torch.bmm(query, key.transpose(1, 2))
    padded = query.shape[1]
    if scoring.causal or (scoring.window and length > scoring.window):
        scores.masked_fill_(~scoring.seen(distances(padded, query.device)), float("-inf"))
    if padded > length:
        scores[:, :, length:] = float("-inf")
    weights = torch.softmax(scores, -1)
    if padded > length:
        weights[:, length:] = 0  # also where a window leaves padding nothing to attend to, and so NaN
    return weights
