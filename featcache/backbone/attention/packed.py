"""Attention within each text of a packed batch, as transformers' `AttentionInterface` calls it.

Linear layers do not care where a text begins; attention does. `packed_attention` is registered with
transformers as an attention implementation, so any model that goes through `AttentionInterface`
serves packed batches with its own, unchanged code.

On CUDA one kernel takes texts of any lengths. What it does not take there, and everything elsewhere, is one
SDPA call for each run of texts of one length, or on CPUs in 16 bits for each bucket of nearly one length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from featcache.backbone.attention.last_block import (
    AttentionReached,
    PooledTokens,
    StopAtAttention,
    attention_of_pooled,
)
from featcache.backbone.attention.sdpa import Scoring, attention_by_buckets, attention_by_runs
from featcache.backbone.attention.varlen import attention_varlen, runs_varlen
from featcache.backbone.packing import NotPackable

IMPLEMENTATION = "featcache_packed"
UNSUPPORTED = ("softcap", "position_bias", "s_aux")


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text of a packed batch.

    Args:
        query: `[1, heads, T, d]`; key and value alike, with as many or fewer heads. Tokens after the last
            text belong to none, and get zeros.
        options: `packed`, a keyword of the model's forward, says where the texts lie (a `PackedLayout`; in
            the highest block, what `last_block` puts in its place). Of what transformers passes,
            `scaling`, `is_causal` and `sliding_window` are followed.

    Returns:
        `[1, T, heads, d]` and no attention weights.

    Raises:
        NotPackable: the layout did not arrive, or the model uses soft-capping, biases or sinks.
    """
    packed = options.get("packed")
    asked = [name for name in UNSUPPORTED if options.get(name) is not None]
    if packed is None or attention_mask is not None or asked:
        raise NotPackable(f"{type(module).__name__} cannot run packed ({', '.join(asked) or 'mask'})")
    if isinstance(packed, StopAtAttention):
        raise AttentionReached(query, key, value)
    if isinstance(packed, PooledTokens):
        return attention_of_pooled(packed, Scoring.of(module, options, packed.layout.longest)), None
    scoring = Scoring.of(module, options, packed.longest)
    if runs_varlen(query, key, value, scoring):
        tokens = int(packed.lengths.sum())
        attended = attention_varlen(
            query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens], packed, scoring
        )
    elif query.device.type == "cpu" and query.dtype == torch.bfloat16 and scoring.window is None:
        return attention_by_buckets(query, key, value, packed, scoring), None
    else:
        attended = attention_by_runs(query, key, value, packed, scoring)
    more = query.shape[2] - attended.shape[1]  # tokens of no text, which fill the batch
    return functional.pad(attended, (0, 0, 0, 0, 0, more)) if more else attended, None


def register(name: str, function: Callable[..., Any]) -> None:
    """Make an attention function for packed batches, which have no mask, known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
