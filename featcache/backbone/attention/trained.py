"""Attention within each text of a packed batch, with a backward pass that is fast on CPUs.

Autograd of `packed_attention` would make, for every text, gradients as large as the batch and add them up;
the backward pass of the flash attention of CPUs takes three times as long as plain products. One gather lays
query, key and value out by text and head; then texts of nearly one length are a few batched products.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.attention.sdpa import Scoring, distances, repeat_heads
from featcache.backbone.packing import PAD_STEP, NotPackable, PackedLayout
from featcache.backbone.private_torch import softmax_backward

IMPLEMENTATION = "featcache_trained"
KEPT = 1024  # tokens of a text up to which its attention weights are kept for the backward pass
AT_ONCE = (
    1 << 19
)  # attention weights of texts that are worked on together: they stay in the processor's cache


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
    attended: torch.Tensor = _TextAttention.apply(query, key, value, packed, scoring)
    return attended, None


class _TextAttention(torch.autograd.Function):
    """softmax(q k^T) v of each text."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        packed: PackedLayout,
        scoring: Scoring,
    ) -> torch.Tensor:
        step = PAD_STEP if query.element_size() == 2 else 1
        laid_out = _laid_out(packed, query.shape[1], scoring, step)
        scale = query.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
        q, k, v = (laid_out.by_head(states) for states in (query, key, value))
        q.mul_(scale)
        output, kept = torch.empty_like(v), []
        for group, q1, k1, v1, into in laid_out.each(q, k, v, output):
            weights = group.weights(q1, k1)
            torch.bmm(weights, v1, out=into)
            if group.length <= KEPT:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.laid_out, ctx.scale = laid_out, scale
        return laid_out.by_token(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        laid_out, left = ctx.laid_out, iter(kept)
        given = laid_out.by_head(gradients[0].transpose(1, 2)).index_fill_(0, laid_out.padding, 0)
        to = [torch.empty_like(states) for states in (q, k, v)]
        for group, q1, k1, v1, upper, to_q, to_k, to_v in laid_out.each(q, k, v, given, *to):
            weights = next(left) if group.length <= KEPT else group.weights(q1, k1)
            torch.bmm(weights.transpose(1, 2), upper, out=to_v)
            scores = softmax_backward(torch.bmm(upper, v1.transpose(1, 2)), weights)
            torch.bmm(scores, k1, out=to_q)
            torch.bmm(scores.transpose(1, 2), q1, out=to_k)
        to[0].mul_(ctx.scale)
        return *(laid_out.by_token(states).transpose(1, 2) for states in to), None, None


@dataclass(frozen=True)
class _Group:
    """Neighbouring texts, padded to one length.

    Attributes:
        rows: theirs in what is laid out by text and head.
        hidden: bool `[texts, 1, length or 1, length]`, which token does not see which; None: all see all.
    """

    rows: slice
    texts: int
    length: int
    hidden: torch.Tensor | None

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Attention weights `[texts * heads, length, length]`."""
        scores = torch.bmm(query, key.transpose(1, 2))
        if self.hidden is not None:
            scores.unflatten(0, (self.texts, -1)).masked_fill_(self.hidden, float("-inf"))
        return torch.softmax(scores, -1)


@dataclass(frozen=True)
class _LaidOut:
    """How the tokens of a packed batch lie by text and head, in 16 bits each text padded.

    oneDNN prepares a product again for each shape it has not seen lately, which takes longer than the
    product: so there should be few lengths. Softmax, too, is twice as fast at multiples of PAD_STEP.

    Attributes:
        gather: int64 `[P]`, the row in `[T * heads, d]` of each place by text and head; of padding any row.
        keep: int64 `[T * heads]`, the place of each row.
        padding: int64, the places of padding.
    """

    heads: int
    groups: tuple[_Group, ...]
    gather: torch.Tensor
    keep: torch.Tensor
    padding: torch.Tensor

    def by_head(self, states: torch.Tensor) -> torch.Tensor:
        """`[1, heads, T, d]` as `[P, d]`."""
        return states[0].transpose(0, 1).flatten(0, 1).index_select(0, self.gather)

    def by_token(self, states: torch.Tensor) -> torch.Tensor:
        """`[P, d]` as `[1, T, heads, d]`."""
        return states.index_select(0, self.keep).view(1, -1, self.heads, states.shape[1])

    def each(self, *states: torch.Tensor) -> Iterator[tuple[Any, ...]]:
        """Each group with its part `[texts * heads, length, d]` of each of `states`, which are `[P, d]`."""
        for group in self.groups:
            yield group, *(part[group.rows].unflatten(0, (-1, group.length)) for part in states)


@lru_cache(maxsize=2)  # all blocks ask for the same
def _laid_out(packed: PackedLayout, heads: int, scoring: Scoring, step: int) -> _LaidOut:
    """The tokens of a batch by text and head, each text padded to a multiple of `step` tokens."""
    lengths = packed.lengths
    padded = -(-lengths // step) * step
    ends = heads * np.concatenate([[0], np.cumsum(padded)])
    text = np.repeat(np.arange(len(lengths)), heads * padded)
    head, place = np.divmod(np.arange(ends[-1]) - ends[text], padded[text])
    real = place < lengths[text]
    row = ((np.cumsum(lengths) - lengths)[text] + place) * heads + head
    keep = np.empty(heads * lengths.sum(), np.int64)
    keep[row[real]] = np.flatnonzero(real)
    gather, padding = np.where(real, row, 0), np.flatnonzero(~real)
    groups = []
    edges = [0, *(np.flatnonzero(np.diff(padded)) + 1).tolist(), len(padded)]
    for begin, end in itertools.pairwise(edges):
        length = int(padded[begin])
        count = max(AT_ONCE // (heads * length**2), 1)
        for first in range(begin, end, count):
            last = min(first + count, end)
            hidden = _hidden(lengths[first:last], length, scoring)
            groups.append(_Group(slice(ends[first], ends[last]), last - first, length, hidden))
    return _LaidOut(heads, tuple(groups), *map(torch.from_numpy, (gather, keep, padding)))


def _hidden(lengths: np.ndarray, padded: int, scoring: Scoring) -> torch.Tensor | None:
    """Which token does not see which, see `_Group`. Each sees itself, so that no softmax is over nothing."""
    hidden = torch.from_numpy(np.arange(padded) >= lengths[:, None])[:, None, None]
    if scoring.causal or (scoring.window and padded > scoring.window):
        unseen = ~scoring.seen(distances(padded, hidden.device))
        return (hidden | unseen) & ~torch.eye(padded, dtype=torch.bool)
    return hidden if hidden.any() else None
