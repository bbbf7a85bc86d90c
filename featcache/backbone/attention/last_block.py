"""The highest block only for the tokens that are pooled.

For [CLS] or last-token pooling, the block below the pooling needs the keys and values of all tokens, but
queries, output projection and feed-forward of a few. Everything but attention treats tokens one by one,
so the block's own code does this unchanged: it runs on all tokens up to its attention, which ends the run
and hands out query, key and value; then once more on the pooled tokens alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.attention.sdpa import Scoring
from featcache.backbone.packing import NotPackable, PackedLayout


class AttentionReached(Exception):
    """Ends a block's first run, with what its attention was given: `[1, heads, T, d]` each."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__("attention is reached")
        self.query, self.key, self.value = query, key, value


class StopAtAttention:
    """Handed to attention instead of a layout: it raises `AttentionReached`."""


@dataclass(frozen=True)
class PooledTokens:
    """Handed to attention instead of a layout: it attends for the pooled tokens alone.

    Attributes:
        tokens: int64 `[M * B]`, the pooled tokens of the batch: one of each text, then the next of each.
        given: query, key and value of all tokens.
    """

    layout: PackedLayout
    tokens: torch.Tensor
    given: AttentionReached


@contextlib.contextmanager
def only(block: nn.Module, layout: PackedLayout, tokens: torch.Tensor) -> Iterator[None]:
    """Let `block` give the states `[1, M * B, H]` of `tokens` instead of all `[1, T, H]`."""
    whole = block.forward

    def forward(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            whole(states, *args, **{**kwargs, "packed": StopAtAttention()})
        except AttentionReached as given:
            pooled = PooledTokens(layout, tokens, given)
        else:
            raise NotPackable(f"{type(block).__name__} has no attention that packed batches reach")
        picked = _pick((args, kwargs), states.shape[1], tokens)
        return whole(states.index_select(1, tokens), *picked[0], **{**picked[1], "packed": pooled})

    block.forward = forward
    try:
        yield
    finally:
        del block.forward  # the class's own is there again


def attention_of_pooled(pooled: PooledTokens, scoring: Scoring) -> torch.Tensor:
    """Attention of the pooled tokens over all tokens of their own text: `[1, M * B, heads, d]`."""
    layout, given = pooled.layout, pooled.given
    texts = len(layout.lengths)
    query = given.query[0].index_select(1, pooled.tokens).unflatten(1, (-1, texts))  # [heads, M, B, d]
    places = (pooled.tokens.view(-1, texts) - layout.cu_seqlens[:-1].long()).T  # [B, M]
    outputs, first = [], 0
    for bucket in layout.buckets:
        count, padded = bucket.shape
        rows = slice(first, first + count)
        distance = places[rows, :, None] - torch.arange(padded, device=places.device)
        seen = (bucket.mask[:, :, 0] == 0) & scoring.seen(distance)
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, rows].permute(2, 0, 1, 3),  # [texts, heads, M, d]
                bucket.padded(given.key),
                bucket.padded(given.value),
                seen[:, None],
                scale=scoring.scale,
                enable_gqa=given.key.shape[1] != query.shape[0],
            )
        )
        first += count
    attended = torch.cat(outputs)  # [B, heads, M, d]
    return attended.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(0)


def _pick(value: Any, count: int, tokens: torch.Tensor) -> Any:
    """`value` with every tensor in it that has one entry a token cut down to `tokens`."""
    if isinstance(value, torch.Tensor):
        for axis in (1, 0):
            if value.dim() > axis and value.shape[axis] == count:
                return value.index_select(axis, tokens)
        return value
    if isinstance(value, (tuple, list)):
        return type(value)(_pick(item, count, tokens) for item in value)
    if isinstance(value, dict):
        return {key: _pick(item, count, tokens) for key, item in value.items()}
    return value
