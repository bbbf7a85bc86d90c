"""The highest block only for the tokens that are pooled.

For [CLS] or last-token pooling, the block below the pooling needs the keys and values of all tokens, but
queries, output projection and feed-forward of a few. Everything but attention treats tokens one by one,
so the block's own code does this unchanged: it runs once on all tokens up to its attention, which keeps
query, key and value and ends the run; then once more on the pooled tokens alone, with what was kept
standing in for what it computes there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.packing import Layout, NotPackable


class Kept(Exception):
    """Ends a block's first run, with what its attention was given."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__("query, key and value are kept")
        self.query, self.key, self.value = query, key, value


@dataclass(frozen=True)
class Keep:
    """Stands where a Layout is handed to attention: keep what it is given."""


@dataclass(frozen=True)
class Tail:
    """Stands where a Layout is handed to attention: attend for the pooled tokens alone.

    Attributes:
        tokens: int64 `[M * B]`, the pooled tokens of the batch: one of each text, then the next of each.
        kept: query, key and value of all tokens, `[1, heads, T, d]`.
    """

    layout: Layout
    tokens: torch.Tensor
    kept: Kept


@contextlib.contextmanager
def only(block: nn.Module, layout: Layout, tokens: torch.Tensor) -> Iterator[None]:
    """Let `block` give the states `[1, M * B, H]` of `tokens` instead of all `[1, T, H]`."""
    whole = block.forward

    def forward(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            whole(states, *args, **{**kwargs, "packed": Keep()})
        except Kept as kept:
            tail = Tail(layout, tokens, kept)
        else:
            raise NotPackable(f"{type(block).__name__} has no attention that is told of packing")
        picked = _pick((args, kwargs), states.shape[1], tokens)
        return whole(states.index_select(1, tokens), *picked[0], **{**picked[1], "packed": tail})

    block.forward = forward
    try:
        yield
    finally:
        del block.forward  # the class's own is there again


def tail_attention(tail: Tail, scaling: float | None, causal: bool, window: int | None) -> torch.Tensor:
    """Attention of the pooled tokens over all tokens of their own text: `[1, M * B, heads, d]`."""
    layout, kept = tail.layout, tail.kept
    texts = len(layout.lengths)
    query = kept.query[0].index_select(1, tail.tokens).unflatten(1, (-1, texts))  # [heads, M, B, d]
    places = (tail.tokens.view(-1, texts) - layout.cu_seqlens[:-1].long()).T  # [B, M]
    outputs, first = [], 0
    for bucket in layout.buckets:
        count, padded = bucket.shape
        rows = slice(first, first + count)
        key, value = (
            states[0]
            .transpose(0, 1)
            .index_select(0, bucket.gather)
            .unflatten(0, bucket.shape)
            .transpose(1, 2)
            for states in (kept.key, kept.value)
        )
        distance = places[rows, :, None] - torch.arange(padded, device=places.device)
        seen = (bucket.mask[:, :, 0] == 0).expand_as(distance)
        seen = seen & (distance >= 0) if causal else seen
        seen = seen & (distance.abs() < window) if window else seen
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, rows].permute(2, 0, 1, 3),  # [texts, heads, M, d]
                key,
                value,
                seen[:, None],
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[0],
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
