"""Attention within each text by SDPA: texts of the same, or nearly the same, length at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from featcache.backbone.packing import PackedLayout


@dataclass(frozen=True)
class Scoring:
    """How attention weighs the tokens of a text.

    Attributes:
        scale: of the products of queries and keys; None: 1 / sqrt(d).
        causal: a token sees none after it.
        window: a token sees those less than this many places away; None: all.
    """

    scale: float | None = None
    causal: bool = False
    window: int | None = None

    @classmethod
    def of(cls, module: torch.nn.Module, options: Mapping[str, Any], longest: int) -> Scoring:
        """What transformers asks of an attention function, for texts of at most `longest` tokens."""
        causal, window = options.get("is_causal"), options.get("sliding_window")
        return cls(
            options.get("scaling"),
            bool(getattr(module, "is_causal", True) if causal is None else causal),
            window if window and longest > window else None,
        )

    def has_default_scale(self, width: int) -> bool:
        return self.scale is None or math.isclose(self.scale, width**-0.5, rel_tol=1e-9)

    def seen(self, distance: torch.Tensor) -> torch.Tensor:
        """Bool, like `distance`: whether a token sees another that many places before it."""
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen = distance.abs() < self.window
        return seen & (distance >= 0) if self.causal else seen


def distances(length: int, device: torch.device) -> torch.Tensor:
    """int64 `[length, length]`: how many places before the row's token the column's lies."""
    places = torch.arange(length, device=device)
    return places[:, None] - places[None, :]


def repeat_heads(states: torch.Tensor, heads: int, axis: int = 1) -> torch.Tensor:
    """Heads that several queries share, once for each query."""
    shared = heads // states.shape[axis]
    return states if shared == 1 else states.repeat_interleave(shared, dim=axis)


def attention_by_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedLayout, scoring: Scoring
) -> torch.Tensor:
    """One SDPA call for each run of equally long texts: `[1, T, heads, d]`; views in, one copy out."""
    if query.device.type == "cuda":  # the kernels for float32 and for masks cannot share heads
        key, value = (repeat_heads(states, query.shape[1]) for states in (key, value))
    outputs: list[torch.Tensor] = []
    for start, count, length in packed.runs:
        q, k, v = (
            states[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        masked = scoring.window is not None and length > scoring.window
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            scoring.seen(distances(length, query.device)) if masked else None,
            scale=scoring.scale,
            is_causal=scoring.causal and not masked,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)


def attention_by_buckets(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: PackedLayout, scoring: Scoring
) -> torch.Tensor:
    """SDPA on texts of nearly equal length together, padded to a multiple of PAD_STEP: `[1, T, heads, d]`.

    On CPUs the 16-bit kernel is up to twice as fast at such lengths, and there are fewer calls. Windows are
    not followed.
    """
    heads, width = query.shape[1], value.shape[-1]
    output = query.new_empty(query.shape[2], heads * width)
    output[int(packed.lengths.sum()) :] = 0  # tokens of no text, which fill the batch
    for bucket in packed.buckets:
        q, k, v = (bucket.padded(states) for states in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            None if scoring.causal else bucket.mask.to(q.dtype),  # a causal text never looks at its padding
            scale=scoring.scale,
            is_causal=scoring.causal,
            enable_gqa=key.shape[1] != heads,
        )
        start, end = bucket.tokens
        torch.index_select(
            attended.transpose(1, 2).flatten(2).flatten(0, 1), 0, bucket.keep, out=output[start:end]
        )
    return output.view(1, -1, heads, width)
