"""Packed batches: texts laid end to end as one row `[1, T]`, so that no padding is ever computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from featcache.backbone.device_copies import copier_of
from featcache.errors import BackboneError

FILL_LEAST, FILL_MOST = 16, 128  # tokens that the sizes of filled batches differ by
PAD_STEP = 16  # lengths that are a multiple of this suit the 16-bit attention kernel of CPUs


class NotPackable(BackboneError):
    """The model needs something that packed attention does not do; padded batches are used instead."""


@dataclass(frozen=True)
class TokenBatch:
    """Texts end to end, on the CPU.

    Attributes:
        input_ids: int64 `[T]`.
        lengths: int64 `[B]`, tokens of each text; they add up to T.
        type_ids: int64 `[T]` for models that distinguish the texts of a pair, else None.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    type_ids: np.ndarray | None = None

    def part(self, texts: slice) -> TokenBatch:
        """Some neighbouring texts of the batch."""
        tokens = tokens_of(self.lengths, texts)
        types = None if self.type_ids is None else self.type_ids[tokens]
        return TokenBatch(self.input_ids[tokens], self.lengths[texts], types)


@dataclass(frozen=True)
class StateBatch:
    """Texts end to end, as states at the cut.

    Attributes:
        states: `[T, H]`, on the CPU.
        lengths: int64 `[B]`.
    """

    states: torch.Tensor
    lengths: np.ndarray

    def part(self, texts: slice) -> StateBatch:
        """Some neighbouring texts of the batch."""
        return StateBatch(self.states[tokens_of(self.lengths, texts)], self.lengths[texts])


@dataclass(frozen=True)
class Bucket:
    """Texts of nearly the same length, padded for attention alone to one length; on the batch's device.

    Attributes:
        tokens: the batch's tokens `[start, end)` that are theirs.
        shape: (texts, padded length).
        gather: int64 `[texts * padded length]`, the token at each padded place; padding repeats the
            text's own first token, so that no text ever touches another.
        keep: int64 `[end - start]`, the padded place of each token.
        mask: `[texts, 1, 1, padded length]`, 0 or -inf.
    """

    tokens: tuple[int, int]
    shape: tuple[int, int]
    gather: torch.Tensor
    keep: torch.Tensor
    mask: torch.Tensor

    def padded(self, states: torch.Tensor) -> torch.Tensor:
        """Their part of `[1, heads, T, d]`, as `[texts, heads, padded length, d]`."""
        tokens: torch.Tensor = states[0].transpose(0, 1).index_select(0, self.gather)
        padded: torch.Tensor = tokens.unflatten(0, self.shape)
        return padded.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Where the texts of a packed batch lie.

    Attributes:
        lengths: tokens of each text, int64 `[B]`, on the CPU.
        runs: `(first token, texts, length)` of each run of neighbours of equal length.
        cu_seqlens: int32 `[B + 1]` on the batch's device, where each text begins; last is T.
    """

    lengths: np.ndarray
    runs: tuple[tuple[int, int, int], ...]
    cu_seqlens: torch.Tensor

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The texts in order, grouped where neighbours' lengths round up to the same multiple of PAD_STEP."""
        padded = -(-self.lengths // PAD_STEP) * PAD_STEP
        edges = [0, *(np.flatnonzero(np.diff(padded)) + 1).tolist(), len(padded)]
        ends = _ends(self.lengths)
        return [
            _bucket(ends[a : b + 1], int(padded[a]), self.cu_seqlens.device)
            for a, b in itertools.pairwise(edges)
        ]

    def token_at(self, place: str) -> torch.Tensor:
        """The `first` or `last` token of each text, int64 `[B]`."""
        begins = self.cu_seqlens.long()
        return begins[:-1] if place == "first" else begins[1:] - 1

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> PackedLayout:
        ends = _ends(lengths)
        breaks = np.flatnonzero(np.diff(lengths)) + 1
        edges = [0, *breaks.tolist(), len(lengths)]
        runs = tuple((int(ends[a]), b - a, int(lengths[a])) for a, b in itertools.pairwise(edges))
        return cls(lengths, runs, copier_of(device).to_device(ends.astype(np.int32)))


def tokens_of(lengths: np.ndarray, texts: slice) -> slice:
    """Where the tokens of some neighbouring texts lie in a batch of texts of these lengths."""
    ends = _ends(lengths)
    return slice(int(ends[texts.start]), int(ends[texts.stop]))


def run_together(lengths: np.ndarray, packing: str) -> list[slice]:
    """Which neighbouring texts of a batch a model runs at once: all, those of equal length, or each alone."""
    count = len(lengths)
    if packing == "equal lengths":
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), count]
    elif packing == "one by one":
        edges = list(range(count + 1))
    else:
        edges = [0, count]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _ends(lengths: np.ndarray) -> np.ndarray:
    """Where each text begins, and last where all of them end: int64 `[B + 1]`."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _bucket(ends: np.ndarray, padded: int, device: torch.device) -> Bucket:
    """The texts between `ends`, each padded to `padded` tokens."""
    places = np.arange(padded)[None, :]
    real = places < np.diff(ends)[:, None]
    gather = ends[:-1, None] + np.where(real, places, 0)
    mask = np.where(real, np.float32(0), np.float32("-inf"))[:, None, None, :]
    up = copier_of(device).to_device
    tokens = (int(ends[0]), int(ends[-1]))
    return Bucket(tokens, real.shape, up(gather.ravel()), up(np.flatnonzero(real)), up(mask))


def filling(tokens: int) -> int:
    """How many more tokens give a batch one of few sizes: at most 127, and at most an eighth or 15.

    On CPUs in 16 bits, oneDNN prepares each product again for a number of tokens that it has not seen lately,
    and keeps what it prepared: this takes memory, and as long as the product itself.
    """
    step = min(max(FILL_LEAST, 1 << max(tokens.bit_length() - 4, 0)), FILL_MOST)
    return -tokens % step


def plan_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows in batches of at most `budget` tokens, longest first, equal lengths side by side.

    Args:
        lengths: tokens of each row, int `[N]`.
        budget: tokens in one batch; a longer row gets a batch of its own.

    Returns:
        Row numbers of each batch. Every row is in exactly one; ties keep file order.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start, filled = [], 0, 0
    for place, row in enumerate(order):
        if place > start and filled + lengths[row] > budget:
            batches.append(order[start:place])
            start, filled = place, 0
        filled += int(lengths[row])
    if len(order) > start:
        batches.append(order[start:])
    return batches


def split_runs(states: torch.Tensor, packed: PackedLayout) -> Iterator[torch.Tensor]:
    """`[T, H]` as one view `[texts, length, H]` for each run of equally long texts."""
    for start, count, length in packed.runs:
        yield states[start : start + count * length].unflatten(0, (count, length))


def without_first(
    states: torch.Tensor, layout: PackedLayout, count: int
) -> tuple[torch.Tensor, PackedLayout]:
    """States `[T', H]` and layout of the texts without their first `count` tokens, but with their last."""
    lengths = layout.lengths
    gone = np.minimum(count, lengths - 1)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = copier_of(states.device).to_device(np.flatnonzero(place >= np.repeat(gone, lengths)))
    return states.index_select(0, kept), PackedLayout.of(lengths - gone, states.device)
