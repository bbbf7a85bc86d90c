"""Packed batches: texts laid end to end as one row `[1, T]`, so that no padding is ever computed.

Linear layers do not care where a text begins; attention does. `packed_attention` is registered with
transformers as an attention implementation and runs attention per text, so any model that goes
through `AttentionInterface` serves packed batches with its own, unchanged code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from featcache.errors import BackboneError

IMPLEMENTATION = "featcache_packed"


class NotPackable(BackboneError):
    """The model asks for something packed attention does not do; padded batches are used instead."""


@dataclass(frozen=True)
class Layout:
    """Where the texts of a packed batch lie.

    Attributes:
        lengths: tokens of each text, int64 `[B]`, on the CPU.
        runs: `(first token, texts, length)` of each run of neighbours of equal length.
        cu_seqlens: int32 `[B + 1]` on the batch's device, where each text begins; last is T.
    """

    lengths: np.ndarray
    runs: tuple[tuple[int, int, int], ...]
    cu_seqlens: torch.Tensor

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> Layout:
        ends = np.concatenate([[0], np.cumsum(lengths)])
        breaks = np.flatnonzero(np.diff(lengths)) + 1
        edges = [0, *breaks.tolist(), len(lengths)]
        runs = tuple((int(ends[a]), b - a, int(lengths[a])) for a, b in itertools.pairwise(edges))
        cu_seqlens = torch.from_numpy(ends.astype(np.int32)).to(device, non_blocking=True)
        return cls(lengths, runs, cu_seqlens)


def plan_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows in batches of at most `budget` tokens, longest first, equal lengths side by side.

    Args:
        lengths: tokens of each row, int `[N]`.
        budget: tokens in one batch; a longer row gets a batch of its own.

    Returns:
        Row numbers of each batch. Every row stands in exactly one; ties keep file order.
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


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text of a packed batch, as transformers' `AttentionInterface` calls it.

    Args:
        query: `[1, heads, T, d]`; key and value alike, with as many or fewer heads.
        packed: where the texts lie; handed to the model as a keyword of its forward.
        sliding_window: a token sees those less than this many places away.

    Returns:
        `[1, T, heads, d]` and no attention weights.

    Raises:
        NotPackable: the layout did not arrive, or the model uses soft-capping, biases or sinks.
    """
    asked = [name for name in ("softcap", "position_bias", "s_aux") if others.get(name) is not None]
    if packed is None or attention_mask is not None or asked:
        raise NotPackable(f"{type(module).__name__} cannot run packed ({', '.join(asked) or 'mask'})")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = sliding_window if sliding_window and packed.longest > sliding_window else None
    return _attention_by_runs(query, key, value, packed, scaling, causal, window), None


def no_mask(*_: Any, **__: Any) -> None:
    """The mask of a packed batch, as `AttentionMaskInterface` asks for it: there is none."""


def register() -> None:
    """Make `packed_attention` known to transformers; safe to call again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, no_mask)


def _attention_by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Layout,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """One SDPA call for each run of equally long texts; views in, one copy out."""
    grouped = key.shape[1] != query.shape[1]
    outputs: list[torch.Tensor] = []
    for start, count, length in packed.runs:
        q, k, v = (
            states[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        mask = _window_mask(length, window, causal, query.device) if window and length > window else None
        attended = functional.scaled_dot_product_attention(
            q, k, v, mask, scale=scaling, is_causal=causal and mask is None, enable_gqa=grouped
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Bool `[length, length]`: True where the row's token sees the column's."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places[None, :]
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near


def split_runs(states: torch.Tensor, packed: Layout) -> Iterator[torch.Tensor]:
    """`[T, H]` as one view `[texts, length, H]` for each run of equally long texts."""
    for start, count, length in packed.runs:
        yield states[start : start + count * length].unflatten(0, (count, length))
