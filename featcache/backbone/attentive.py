"""Attentive pooling: learned queries say how much each token of a text counts in its vector.

Each query attends to all tokens of a text, and by its weights a slice of the numbers of their states is
averaged: the vector is as wide as a state. Several queries, no projection of the keys: Psomas et al. 2025,
arXiv:2506.10178.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from featcache.backbone.packing import PackedLayout

PIECE = 512  # tokens that are pooled at once
PADDED = 8 / 7  # tokens with padding for each token, at most


@dataclass(frozen=True, eq=False)
class Attention:
    """What was learnt of one layer.

    Attributes:
        queries: float32 `[M, H]`.
        center: float32 `[H]`, subtracted from the averaged states: the mean of the train tokens.
    """

    queries: torch.Tensor
    center: torch.Tensor

    @classmethod
    def of(cls, queries: np.ndarray, center: np.ndarray) -> Attention:
        return cls(torch.from_numpy(queries), torch.from_numpy(center))

    def to(self, device: torch.device) -> Attention:
        return Attention(self.queries.to(device), self.center.to(device))

    @property
    def query_of(self) -> torch.Tensor:
        """By which query each number is averaged, int64 `[H]`."""
        return query_of(self.queries)

    def weights(self, states: torch.Tensor) -> torch.Tensor:
        """How much each token of a text counts for each query: float32 `[t, H]` -> `[t, M]`."""
        return (states @ self.queries.T).softmax(0)

    def pool(self, states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """The states `[T, H]` of a packed batch to float32 `[B, H]`."""
        return pool_layers(states[None], layout, self.queries[None])[0] - self.center


def query_of(queries: torch.Tensor) -> torch.Tensor:
    """By which of the queries `[..., M, H]` each number is averaged, int64 `[H]`: neighbours by the same."""
    count, width = queries.shape[-2:]
    return torch.arange(width, device=queries.device) * count // width


def pool_layers(states: torch.Tensor, layout: PackedLayout, queries: torch.Tensor) -> torch.Tensor:
    """What queries `[L, M, H]` average of the states `[L, T, H]` of L layers: float32 `[L, B, H]`.

    Gradients reach the queries, not the states.
    """
    pooled: torch.Tensor = _Pooling.apply(queries, states, layout)  # type: ignore[no-untyped-call]
    return pooled


class _Pooling(torch.autograd.Function):
    """`pool_layers`, a few texts at a time: their states in float32 stay in the processor's cache.

    The backward pass reads the states again; only the weights of the tokens are kept for it. Each query
    averages all numbers, not its own alone: one product of matrices takes less time than M small ones.
    Where queries are trained, texts of unlike lengths are pooled together, so that a step has few products.
    """

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, states: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        layers, count, width = queries.shape
        wanted = query_of(queries) * width + torch.arange(width, device=queries.device)  # of [M, H], flat
        pooled, kept, columns = [], [], queries.transpose(1, 2)
        pieces = list(_padded_pieces(layout) if ctx.needs_input_grad[0] else _pieces(layout, count))
        scratch = Scratch(torch.float32, states.device)
        for piece in pieces:
            own = piece.of(states, scratch)
            scores = torch.bmm(own.view(layers, -1, width), columns)
            weights = piece.without_padding(scores.view(layers, *own.shape[1:3], count)).softmax(2)
            means = weights.transpose(2, 3) @ own  # [L, n, M, H]
            pooled.append(means.flatten(2).index_select(2, wanted))
            kept.append(weights)
        ctx.save_for_backward(queries, states, *kept)
        ctx.pieces, ctx.scratch = pieces, scratch
        return torch.cat(pooled, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, states, *kept = ctx.saved_tensors
        averaged = functional.one_hot(query_of(queries), queries.shape[1]).to(gradient.dtype)  # [H, M]
        found, first = torch.zeros_like(queries), 0
        for piece, weights in zip(ctx.pieces, kept, strict=True):
            own, part = piece.of(states, ctx.scratch), gradient[:, first : first + len(piece.lengths)]
            to_weights = own @ (part.unsqueeze(3) * averaged)  # [L, n, t, M]
            to_scores = weights * (to_weights - (weights * to_weights).sum(2, keepdim=True))
            found.baddbmm_(to_scores.flatten(1, 2).transpose(1, 2), own.flatten(1, 2))
            first += len(piece.lengths)
        return found, None, None


class _Piece(NamedTuple):
    """Some neighbouring texts of a packed batch."""

    start: int  # their first token
    lengths: list[int]  # tokens of each

    def of(self, states: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """Their part of `[L, T, H]`: float32 `[L, texts, longest, H]`, in `scratch`, padded with zeros."""
        longest, begin = max(self.lengths), self.start
        own = scratch.empty(len(states), len(self.lengths), longest, states.shape[2])
        if min(self.lengths) == longest:
            own.flatten(1, 2).copy_(states.narrow(1, begin, len(self.lengths) * longest))
            return own
        for place, length in enumerate(self.lengths):
            own[:, place, :length].copy_(states.narrow(1, begin, length))
            own[:, place, length:].zero_()
            begin += length
        return own

    def without_padding(self, scores: torch.Tensor) -> torch.Tensor:
        """`[L, texts, longest, M]` with -inf where a text has no token; the same tensor."""
        for place, length in enumerate(self.lengths):
            if length < scores.shape[2]:
                scores[:, place, length:] = -math.inf
        return scores


class Scratch:
    """Memory that is used again and again: new memory takes longer to get than to fill."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def empty(self, *shape: int) -> torch.Tensor:
        """A tensor of this shape, valid until the next one."""
        needed = math.prod(shape)
        if needed > self._memory.numel():
            self._memory = self._memory.new_empty(needed)
        return self._memory[:needed].view(shape)


def _pieces(layout: PackedLayout, queries: int) -> Iterator[_Piece]:
    """Texts of equal length; averages by all queries are no larger than the states of a piece."""
    for start, count, length in layout.runs:
        most = max(PIECE // max(length, queries), 1)
        for first in range(0, count, most):
            yield _Piece(start + first * length, [length] * min(most, count - first))


def _padded_pieces(layout: PackedLayout) -> Iterator[_Piece]:
    """Neighbours of like lengths: padded they have up to PIECE tokens, an eighth of these at most padding."""
    start, own, tokens = 0, list[int](), 0
    for length in layout.lengths.tolist():
        longest, count = max([*own, length]), len(own) + 1
        if own and (longest * count > PIECE or longest * count > (tokens + length) * PADDED):
            yield _Piece(start, own)
            start, own, tokens = start + tokens, [], 0
        own.append(length)
        tokens += length
    if own:
        yield _Piece(start, own)
